import json
import os
import time

import pytest

from support.capabilities import CPU, GPU_FIELDS, Capabilities, Gpu, parse_gpus, probe, visible_gpus
from support.errors import NoDeviceError, ToolError, UsageError, WrongDeviceError

ROW = "0, Tesla T4, GPU-1a2b3c4d, 535.104.05, 15360, 7"


def gpu(index=0, name="Tesla T4", uuid="GPU-0000"):
    return Gpu(index=index, name=name, uuid=uuid, driver="535.104.05", memory=15360, utilisation=0)


def machine(*gpus, problem=""):
    return Capabilities(
        host="host",
        cpu="a CPU",
        cores=2,
        memory_gib=7.7,
        system="Linux",
        python="3.11.9",
        packages={"numpy": "2.4.0", "torch": "2.14.1"},
        gpus=gpus,
        gpu_problem=problem,
    )


# -- what nvidia-smi prints --------------------------------------------------------------------------------------------


def test_a_row_is_read_field_by_field():
    (found,) = parse_gpus(ROW + "\n")
    assert found == Gpu(index=0, name="Tesla T4", uuid="GPU-1a2b3c4d", driver="535.104.05", memory=15360, utilisation=7)


def test_what_the_driver_does_not_tell_is_unknown():
    (found,) = parse_gpus("3, NVIDIA A10, GPU-1, 550.54, [N/A], [Not Supported]")
    assert (found.index, found.memory, found.utilisation) == (3, None, None)


def test_all_rows_are_read_in_their_order():
    assert [found.index for found in parse_gpus(ROW + "\n" + ROW.replace("0,", "1,", 1))] == [0, 1]
    assert parse_gpus("\n") == ()


@pytest.mark.parametrize(
    "row",
    [
        "No devices were found",
        ROW + ", surplus",
        ROW.rpartition(",")[0],
        ROW.replace("0,", "zero,", 1),
        ROW.replace("15360", "15360 MiB"),
        ROW.replace(", 7", ", "),
        ROW + "\n\n" + ROW,
    ],
)
def test_a_row_with_other_fields_is_shown(row):
    with pytest.raises(ToolError, match=f"nvidia-smi printed '.*'\n.*{', '.join(GPU_FIELDS)}"):
        parse_gpus(row)


# -- what CUDA_VISIBLE_DEVICES admits ----------------------------------------------------------------------------------

THREE = (gpu(0, uuid="GPU-aa11"), gpu(1, uuid="GPU-aa22"), gpu(2, uuid="GPU-bb33"))


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 2 , 0 ", [2, 0]),
        ("GPU-bb33", [2]),
        ("GPU-b", [2]),
        ("GPU-aa2,0", [1, 0]),
        ("-1", []),
        ("1,-1,0", [1]),
        ("0,7,1", [0]),
        ("0,,1", [0]),
        ("GPU-aa", []),
        ("NoDevFiles", []),
        ("01", []),
    ],
)
def test_gpus_are_numbered_as_cuda_numbers_them(visible, indices):
    assert [found.index for found in visible_gpus(THREE, visible)] == indices


def test_part_of_a_gpu_is_refused():
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=MIG-1234: a MIG partition is not the whole chip"):
        visible_gpus(THREE, "MIG-1234")


# -- the device under test ---------------------------------------------------------------------------------------------


def test_the_cpu_is_always_here():
    chip = machine().chip(CPU)
    assert (chip.name, chip.model, chip.serial, chip.simulation) == ("cpu", "a CPU", "host", "")


@pytest.mark.parametrize("name", ["Tesla T4", "NVIDIA T4", "T4"])
def test_a_gpu_is_found_by_the_word_in_its_name(name):
    chip = machine(gpu(name="Tesla V100"), gpu(1, name, "GPU-77")).chip("T4", (1,))
    assert (chip.name, chip.device_id, chip.model, chip.serial, chip.driver) == ("T4", 1, name, "GPU-77", "535.104.05")


@pytest.mark.parametrize("name", ["NVIDIA T400", "NVIDIA T4G", "NVIDIA T400 4GB", "Tesla V100", "tesla t4", ""])
def test_another_gpu_is_the_wrong_device(name):
    with pytest.raises(WrongDeviceError, match=f"GPU 0 is a {name}, not a T4\n.*the word T4\n.*0 {name}, 1 Tesla T4"):
        machine(gpu(name=name), gpu(1)).chip("T4", (0,))


def test_without_a_gpu_the_reason_is_told():
    with pytest.raises(NoDeviceError, match=r"no T4 on this host: nvidia-smi is not on PATH\n.*lists\n.*--chip=cpu"):
        machine(problem="nvidia-smi is not on PATH").chip("T4", (0,))


@pytest.mark.parametrize("device_id", [2, 9, -1])
def test_a_device_id_that_is_not_there_is_answered_with_those_that_are(device_id):
    with pytest.raises(NoDeviceError, match=f"no GPU {device_id}: 0 Tesla T4, 1 Tesla V100"):
        machine(gpu(), gpu(1, "Tesla V100")).chip("T4", (device_id,))


@pytest.mark.parametrize("name", ["310", "310P", "310P3", "310B1"])
def test_without_npu_smi_there_is_no_ascend_chip(monkeypatch, tmp_path, name):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoDeviceError, match=f"no {name} on this host: npu-smi is not on PATH\n.*\n.*Ascend driver"):
        probe(timeout=30).chip(name)
    tool(tmp_path, "echo 'dcmi module initialize failed. ret is -8005'; exit 187", name="npu-smi")
    with pytest.raises(NoDeviceError, match=f"no {name} on this host: npu-smi ended with 187: .*\n.*\n.*HwHiAiUser"):
        probe(timeout=30).chip(name)


def test_a_package_that_is_missing_is_named_with_what_brings_it():
    assert machine().require_package("torch", "export") == "2.14.1"
    with pytest.raises(ToolError, match=r"onnxsim is not installed\n.*pip install '\.\[export\]'"):
        machine().require_package("onnxsim", "export")


def test_the_header_shows_what_decides_a_run():
    header = "\n".join(machine(gpu()).header)
    for part in ("a CPU", "2 cores", "8 GiB", "Linux", "Python 3.11.9", "numpy 2.4.0 torch 2.14.1", "gpus: Tesla T4"):
        assert part in header
    assert "gpus: none (no driver)" in "\n".join(machine(problem="no driver").header)


def test_what_was_probed_reaches_the_workers_unchanged():
    found = machine(gpu(), gpu(1))
    assert Capabilities.model_validate_json(found.model_dump_json()) == found
    assert json.loads(found.model_dump_json())["gpus"][1]["index"] == 1


# -- probing, with tools that misbehave --------------------------------------------------------------------------------


def tool(folder, script, name="nvidia-smi"):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda script: tool(tmp_path, script)


def test_gpus_that_nvidia_smi_lists_are_found(nvidia_smi, tmp_path):
    nvidia_smi(f'echo "$@" > {tmp_path}/asked; echo "{ROW}"')
    found = probe(timeout=30)
    assert [gpu.name for gpu in found.gpus] == ["Tesla T4"]
    assert found.gpu_problem == ""
    assert (tmp_path / "asked").read_text().split() == [
        f"--query-gpu={','.join(GPU_FIELDS)}",
        "--format=csv,noheader,nounits",
    ]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'NVIDIA-SMI has failed'; echo 'driver?' >&2; exit 9", "nvidia-smi ended with 9: NVIDIA-SMI has failed"),
        ("echo 'No devices were found'", "nvidia-smi printed 'No devices were found'"),
        ("printf '\\377\\376\\0garbage'", "nvidia-smi printed "),
        ("exit 0", "nvidia-smi lists no GPU that CUDA_VISIBLE_DEVICES admits"),
        ("kill -9 $$", "nvidia-smi ended with -9"),
    ],
)
def test_a_tool_that_fails_tells_why_there_is_no_gpu(nvidia_smi, script, problem):
    nvidia_smi(script)
    found = probe(timeout=30)
    assert found.gpus == ()
    assert found.gpu_problem.startswith(problem)
    with pytest.raises(NoDeviceError, match="no T4 on this host: nvidia-smi"):
        found.chip("T4", (0,))


def test_a_tool_that_hangs_is_given_up(nvidia_smi):
    nvidia_smi("exec sleep 30")
    start = time.monotonic()
    assert probe(timeout=0.2).gpu_problem == "nvidia-smi gave no answer in 0.2 s"
    assert time.monotonic() - start < 10


def test_a_file_that_cannot_be_started_is_no_tool(nvidia_smi):
    nvidia_smi("").write_bytes(b"\x7fELF is not enough")
    assert probe(timeout=30).gpu_problem.startswith("nvidia-smi cannot be started: ")


def test_without_the_tool_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe(timeout=30).gpu_problem == "nvidia-smi is not on PATH"


@pytest.mark.parametrize(
    ("visible", "problem"),
    [("", "nvidia-smi lists no GPU that CUDA_VISIBLE_DEVICES admits"), ("MIG-1", "CUDA_VISIBLE_DEVICES=MIG-1: a MIG ")],
)
def test_hidden_gpus_are_not_here_and_disturb_no_run_on_the_cpu(nvidia_smi, monkeypatch, visible, problem):
    nvidia_smi(f'echo "{ROW}"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = probe(timeout=30)
    assert found.gpus == ()
    assert found.gpu_problem.startswith(problem)
    assert found.chip(CPU).name == CPU


def test_this_machine_can_be_described(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = probe(timeout=30)
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_gib > 0
    assert {"numpy", "pytest", "pydantic"} & found.packages.keys() == {"numpy", "pytest"}
