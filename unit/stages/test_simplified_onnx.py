import stat
import sys

import numpy as np
import pytest

from support.artifacts import Artifact, ArtifactStore, file_sha256
from support.errors import BuildFailedError, NoSpaceError, SuiteTimeoutError
from support.onnx_files import load_onnx, output_shapes, save_onnx
from support.progress import SilentProgress
from support.stages.pad_example import pad_example
from support.stages.simplified_onnx import simplified_onnx

BATCH = 2


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store", lock_seconds=30)


@pytest.fixture(scope="module")
def simplified(stage_store, raw):
    return simplified_onnx(stage_store, raw, 300, BATCH, SilentProgress())


# Stands in for the Python that runs onnxsim; it is called as: PYTHON -m MODULE SOURCE TARGET SHAPES.
@pytest.fixture
def tool(tmp_path, monkeypatch):
    def write(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(path))

    return write


def test_the_network_keeps_its_borders_and_loses_what_shapes_decide(simplified, raw):
    before, after = load_onnx(raw.path), load_onnx(simplified.path)
    assert dict(output_shapes(after)) == dict(output_shapes(before))
    assert {node.op_type for node in after.graph.node}.isdisjoint({"Shape", "ConstantOfShape", "Reshape", "Cast"})
    assert simplified.made_by["facts"]["kept_pads"] == []
    assert raw.sha256 in simplified.parents


def test_the_simplified_network_computes_what_the_raw_one_computes(simplified, raw):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = np.random.default_rng(7).normal(size=(BATCH, 3, 512, 512)).astype(np.float32)
    runs = [
        onnxruntime.InferenceSession(artifact.path, providers=["CPUExecutionProvider"]).run(None, {"x.1": images})
        for artifact in (raw, simplified)
    ]
    for before, after in zip(*runs, strict=True):
        np.testing.assert_allclose(after, before, atol=1e-3)


def test_a_second_call_simplifies_nothing(simplified, stage_store, raw, tool):
    tool("exit 9")
    again = simplified_onnx(stage_store, raw, 300, BATCH, SilentProgress())
    assert (again.built, again.sha256) == (False, simplified.sha256)


def test_the_same_graph_gives_the_same_bytes(store, tmp_path, capfd):
    other = ArtifactStore(tmp_path / "other", lock_seconds=30)
    one, two = (simplified_onnx(place, pad_example(), 300, 1, SilentProgress()) for place in (store, other))
    assert one.built
    assert two.built
    assert one.sha256 == two.sha256
    assert capfd.readouterr() == ("", "")


def test_a_tool_that_fails_is_a_failed_build_with_its_last_words(store, tool):
    tool("echo folding; echo folding; echo 'no such operator' >&2; exit 3")
    with pytest.raises(BuildFailedError, match=r"onnxsim ended with status 3:\nfolding\nno such operator"):
        simplified_onnx(store, pad_example(), 300, 1, SilentProgress())
    assert not list(store.root.rglob("*.onnx"))


def test_a_tool_that_hangs_is_stopped(store, tool):
    tool("exec sleep 60")
    with pytest.raises(SuiteTimeoutError, match=r"onnxsim was stopped after 0\.2 s"):
        simplified_onnx(store, pad_example(), 0.2, 1, SilentProgress())


def test_a_tool_that_fills_the_disk_is_told_apart(store, tool):
    tool("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
    with pytest.raises(NoSpaceError, match="is full"):
        simplified_onnx(store, pad_example(), 300, 1, SilentProgress())


def rename_output(model):
    model.graph.output[0].name = "z"
    model.graph.node[-1].output[0] = "z"


def free_batch(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def raise_opset(model):
    model.opset_import[0].version = 13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_output, r"changed the outputs from \[\('y', \(1, 4, 2, 2\)\)\] to \[\('z', "),
        (free_batch, r"changed the inputs from \[\('x', \(1, 3, 8, 8\)\)\] to \[\('x', \('batch', 3, 8, 8\)\)\]"),
        (raise_opset, "changed the opset from 11 to 13"),
    ],
)
def test_a_tool_that_changes_the_borders_is_a_failed_build(change, message, store, tool, tmp_path):
    model = load_onnx(pad_example().path)
    change(model)
    save_onnx(model, tmp_path / "other.onnx")
    tool(f"cp {tmp_path}/other.onnx $4")
    with pytest.raises(BuildFailedError, match=message):
        simplified_onnx(store, pad_example(), 300, 1, SilentProgress())


def test_a_graph_of_another_batch_size_is_refused(store, tool):
    tool("exit 9")
    with pytest.raises(BuildFailedError, match=r"pads\.onnx has the inputs \{'x': \[1, 3, 8, 8\]\}") as caught:
        simplified_onnx(store, pad_example(), 300, 4, SilentProgress())
    assert caught.value.required == "fixed shapes of batch 4"


def test_a_graph_of_variable_batch_size_is_refused(store, tool, tmp_path):
    tool("exit 9")
    model = load_onnx(pad_example().path)
    free_batch(model)
    save_onnx(model, tmp_path / "free.onnx")
    source = Artifact("onnx", tmp_path / "free.onnx", file_sha256(tmp_path / "free.onnx"), {}, ())
    with pytest.raises(BuildFailedError, match=r"has the inputs \{'x': \['batch', 3, 8, 8\]\}"):
        simplified_onnx(store, source, 300, 1, SilentProgress())
