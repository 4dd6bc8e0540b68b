import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from support.trials.world import write_world

CHECKOUT = Path(__file__).resolve().parents[1]
CORE = CHECKOUT / ".venv-core/bin/python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_torch,
    pytest.mark.skipif(not CORE.is_file(), reason="needs an environment without torch: make .venv-core/.ready"),
]


def pytest_in(python, *arguments):
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module")
def host_with_torch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    # 16 images at one batch size show what the whole kit does, in a tenth of the time.
    write_world(folder)
    common = [f"--spec={folder / 'spec.toml'}", f"--artifacts={folder / 'store'}"]
    done = pytest_in(sys.executable, "acceptance/test_reference.py", *common, f"--record-reference={folder / 'ref'}")
    assert "undetermined: shapes_16 on cpu (not a release): partial" in done.stdout, done.stdout
    for manifest in folder.glob("store/modified_onnx/*/artifact.json"):
        batch = json.loads(manifest.read_text())["recipe"]["options"]["batch"]
        shutil.copy(manifest.parent / "model.onnx", folder / f"d0_bs{batch}.onnx")
    return folder


def gate(folder, store, models, *arguments):
    return pytest_in(
        CORE,
        "-m",
        "acceptance",
        "--chip=cpu",
        f"--spec={folder / 'spec.toml'}",
        f"--artifacts={store}",
        f"--onnx={models}/d0_bs{{batch}}.onnx",
        f"--reference={folder / 'ref'}",
        *arguments,
    )


def test_the_core_environment_has_no_torch():
    missing = subprocess.run([str(CORE), "-c", "import torch"], capture_output=True, text=True, check=False)

    assert "No module named 'torch'" in missing.stderr


def test_prebuilt_models_are_accepted_without_torch(host_with_torch, tmp_path):
    done = gate(host_with_torch, tmp_path / "store", host_with_torch)

    assert "accepted: shapes_16 on cpu (not a release)" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_a_prebuilt_model_that_lost_a_class_is_rejected_without_torch(host_with_torch, tmp_path):
    for path in host_with_torch.glob("d0_bs*.onnx"):
        model = onnx.load(path)
        silence_class(model, category_id=8)
        onnx.save(model, tmp_path / path.name)

    done = gate(host_with_torch, tmp_path / "store", tmp_path)

    assert "rejected: shapes_16 on cpu (not a release)" in done.stdout, done.stdout + done.stderr
    assert "class 8" in done.stdout or "id 8" in done.stdout
    # Without the checkpoint blocks cannot be told, but heads and classes can.
    assert "look first at: " in done.stdout
    assert done.returncode == 1


def silence_class(model, category_id):
    # Of the class heads only the last convolution has one channel for every anchor and class.
    (bias,) = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [810]]
    values = numpy_helper.to_array(bias).copy().reshape(9, 90)
    values[:, category_id - 1] = -20.0
    bias.CopyFrom(numpy_helper.from_array(values.reshape(-1), bias.name))


def test_a_reference_with_an_edited_byte_is_refused(host_with_torch, tmp_path):
    bundle = tmp_path / "ref"
    shutil.copytree(host_with_torch / "ref", bundle)
    detections = bytearray((bundle / "detections.npz").read_bytes())
    detections[len(detections) // 2] ^= 1
    (bundle / "detections.npz").write_bytes(detections)

    done = gate(
        host_with_torch, tmp_path / "store", host_with_torch, f"--reference={bundle}", "-k", "test_score_agreement"
    )

    assert done.returncode == 10
    assert "wrong-data" in done.stdout
    assert "detections.npz" in done.stdout
