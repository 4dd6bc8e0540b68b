import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from support.errors import UsageError
from support.options import RunOptions, batch_sizes_from_text, device_ids_from_text
from support.spec import SPEC_FOLDER, load_spec

SPEC = load_spec("efficientdet_d0")
T4 = RunOptions(chip="T4")


@pytest.mark.parametrize(("text", "sizes"), [("1", (1,)), ("1,4", (1, 4)), ("64, 1,4 ,4", (1, 4, 64)), ("08,8", (8,))])
def test_batch_sizes_are_read_sorted_and_once(text, sizes):
    assert batch_sizes_from_text(text) == sizes


@pytest.mark.parametrize("text", ["", "0", "1,", ",", "-1", "1.5", "a", "1;4", "4 8", "1e3", "²"])
def test_a_list_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=f"^--batch-sizes={text}: not a list of positive integers"):
        batch_sizes_from_text(text)


def test_the_batch_sizes_of_the_spec_are_run_unless_others_are_asked_for():
    assert RunOptions().batches(SPEC) == SPEC.batch_sizes
    assert RunOptions(batch_sizes=(4,)).batches(SPEC) == (4,)


def test_a_given_model_is_not_built():
    assert RunOptions().mode == "build"
    assert RunOptions(onnx="d0_{batch}.onnx").mode == "onnx"
    assert RunOptions(om="d0_{batch}.om").mode == "om"
    assert RunOptions(results="result").mode == "results"


@pytest.mark.parametrize(("text", "ids"), [("0", (0,)), ("2,0", (2, 0)), (" 1 , 3 ", (1, 3))])
def test_device_ids_keep_their_order(text, ids):
    assert device_ids_from_text(text) == ids


@pytest.mark.parametrize("text", ["", "a", "-1", "0,", "0,0", "1;2", "²"])
def test_a_list_of_devices_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=f"^--device-id={text}: not a list of different device ids"):
        device_ids_from_text(text)


def test_a_simulated_chip_has_the_name_of_the_real_one_and_says_what_it_is():
    options = RunOptions(chip="sim:310P3,v1")
    assert (options.chip_name, options.on_npu) == ("310P3", True)
    assert options.device == options.simulation.label == "simulated 310P3 (aclruntime V1, compute mode)"
    assert RunOptions(chip="310P3").simulation is None
    assert any("is simulated" in what for what in options.not_release(SPEC))


@pytest.mark.parametrize(
    "options", [replace(T4, chip="310P3", results="result"), replace(T4, chip="310P3", allow_busy=True)]
)
def test_what_nobody_saw_or_a_shared_device_is_no_release(options):
    assert options.not_release(SPEC)


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(),
        T4,
        RunOptions(chip="310P3"),
        RunOptions(batch_sizes=(1, 64)),
        RunOptions(onnx="d0_{batch}.onnx"),
        RunOptions(onnx="d0.onnx", batch_sizes=(1,)),
        RunOptions(reference=Path("ref")),
        RunOptions(reference=Path("ref"), onnx="d0_{batch}.onnx", limit=4),
        RunOptions(record_reference=Path("ref")),
        RunOptions(limit=4),
        RunOptions(chip="sim:310P3,devices=2", device_ids=(0, 1)),
        RunOptions(chip="T4", device_ids=(1,)),
        RunOptions(chip="310P3", om="d0_{batch}.om", scratch=Path("tmp"), acl_python=Path("python3.7")),
        RunOptions(chip="310P3", results="result", reference=Path("ref")),
        RunOptions(chip="310P3", route="files", ais_infer=Path("ais_infer.py")),
    ],
)
def test_what_makes_sense_passes(options):
    options.check(SPEC)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunOptions(chip="T400"), "--chip=T400: unknown to efficientdet_d0\n.*one of cpu, 310, 310P, 310P3, 310B1, T4"),
        (RunOptions(chip="t4"), "--chip=t4: unknown"),
        (RunOptions(chip="sim:T4"), "--chip=sim:T4: 'T4' cannot be simulated"),
        (RunOptions(chip="sim:310P3,v9"), "--chip=sim:310P3,v9: 'v9' is not known"),
        (RunOptions(chip="310P3", om="d0.om"), r"--om=d0\.om: one file for several batch sizes"),
        (RunOptions(chip="310P3", om="d0_{batch}.om", results="r"), "--om and --results exclude each other"),
        (RunOptions(om="d0_{batch}.om"), "--om needs an Ascend chip, not cpu\n.*--chip=310P3"),
        (RunOptions(chip="T4", acl_python=Path("p")), "--acl-python needs an Ascend chip, not T4"),
        (RunOptions(route="files"), "--route=files runs ais_bench on an Ascend chip"),
        (RunOptions(chip="310P3", route="files", results="r"), "--route=files runs"),
        (RunOptions(device_ids=(0,)), "--device-id=0: cpu has no such choice"),
        (RunOptions(chip="T4", device_ids=(0, 1)), "--device-id=0,1: T4 has no such choice"),
        (
            RunOptions(chip="310P3", om="d0_{batch}.om", record_reference=Path("b")),
            "measures the checkpoint\n.*out --om",
        ),
        (RunOptions(batch_sizes=(1, 2, 3)), r"--batch-sizes: \[2, 3\] not in efficientdet_d0\n.*\[1, 4, 8, 16, 32, 64"),
        (RunOptions(onnx="d0.onnx"), r"--onnx=d0\.onnx: one file for several batch sizes\n.*\{batch\} in the path"),
        (
            RunOptions(reference=Path("a"), record_reference=Path("b")),
            "--reference and --record-reference exclude each other",
        ),
        (
            RunOptions(record_reference=Path("b"), onnx="d0_{batch}.onnx"),
            "--record-reference measures the checkpoint\n.*leave out --onnx",
        ),
        (RunOptions(record_reference=Path("b"), limit=8), "--record-reference needs every image\n.*leave out --limit"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        options.check(SPEC)


def test_a_run_without_overrides_on_hardware_is_a_release():
    assert T4.not_release(SPEC) == ()
    assert replace(T4, onnx="d0_{batch}.onnx", reference=Path("ref")).not_release(SPEC) == ()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (RunOptions(), "--chip=cpu"),
        (replace(T4, limit=5000), "--limit"),
        (replace(T4, batch_sizes=(1, 4, 8, 16, 32, 64)), "--batch-sizes"),
    ],
)
def test_a_run_with_an_override_is_not_a_release(options, what):
    assert options.not_release(SPEC) == (what,)


def test_an_unpublished_spec_is_not_a_release():
    kit = load_spec("shapes_d0")
    assert replace(T4, spec="shapes_d0").not_release(kit) == ("shapes_d0 is not a published spec",)


def test_a_spec_from_elsewhere_is_not_a_release_whatever_it_says_of_itself(tmp_path):
    path = str(shutil.copy(SPEC_FOLDER / "efficientdet_d0.toml", tmp_path))
    copied = load_spec(path)
    assert copied.published
    assert replace(T4, spec=path).not_release(copied) == (f"--spec={path} is not one of this suite",)
    # Where it was read counts, not what lies there later.
    Path(path).unlink()
    Path(path).symlink_to(SPEC_FOLDER / "efficientdet_d0.toml")
    assert replace(T4, spec=path).not_release(copied) == (f"--spec={path} is not one of this suite",)
    own = str(SPEC_FOLDER / "efficientdet_d0.toml")
    assert replace(T4, spec=own).not_release(load_spec(own)) == ()
