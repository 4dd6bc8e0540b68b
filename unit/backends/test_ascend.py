import errno
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

import support.ascend.transfer
import support.backends.ascend
from support.ascend.acl_python import AclPython
from support.backends.ascend import AclBackend
from support.backends.base import TensorInfo
from support.deadline import deadline
from support.errors import (
    ContractViolationError,
    DeviceLostError,
    NoDataError,
    NoDeviceError,
    NoSpaceError,
    SuiteTimeoutError,
    ToolError,
)
from support.simulator.host import Simulation, simulated_host
from support.simulator.om import Om, OmTensor, write_om
from unit.ascend.interpreters import OLDEST, OURS, interpreter
from unit.simulator import stand_in

BATCH = stand_in.images(2)
SHAPE = (2, 3, 4, 4)
RAW = OmTensor("x.1", SHAPE, "float32")


def python(path=sys.executable):
    return AclPython(Path(path), "3", "V3", "0.0.2")


# Everything the backend and its worker write is below one folder.
@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(support.ascend.transfer, "MEMORY", folder)
    return folder


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    return {name: stand_in.host(folder / name, f"sim:310P3,{name.lower()}") for name in ("V1", "V2", "V3")}


@pytest.fixture
def backend(hosts, tmp_path, temporary):
    def make(path=None, host=None, generation="V3", **changes):
        options = {"python": python(), "device_id": 0, "scratch": None, "load_seconds": 60, "call_seconds": 60}
        model = path or stand_in.model(tmp_path / "small.om")
        return AclBackend(model, host=host or hosts[generation], **options | changes)

    return make


# The simulated device itself, with a fault or a model of our own.
@pytest.fixture
def simulated(backend, tmp_path):
    def make(fault="", path=None, om=None, **changes):
        host = simulated_host(tmp_path / "host", Simulation("310P3", faults=(fault,) if fault else ()))
        return backend(path or compiled(tmp_path / "relu.om", **om or {}), host, **changes)

    return make


def compiled(path, **changes):
    helper = pytest.importorskip("onnx").helper
    values = [helper.make_tensor_value_info(name, 1, SHAPE) for name in ("x.1", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x.1"], ["y"], "relu")], "relu", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    om = Om((RAW,), (replace(RAW, name="y"),), "Ascend310P3", "", (), (), False, "", "", model.SerializeToString())
    write_om(path, replace(om, **changes))
    return path


def refused(backend, kind, message):
    with pytest.raises(kind, match=message) as caught, backend:
        pytest.fail("the context was entered")
    assert backend.worker_pid is None
    return caught.value


# -- a device that works -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", ["V1", "V2", "V3"])
@pytest.mark.parametrize("name", [OURS, OLDEST])
def test_every_generation_computes_and_tells_the_time_of_the_device(backend, generation, name):
    opened = backend(generation=generation, python=python(interpreter(name)))
    with opened:
        assert opened.input == TensorInfo("x.1", SHAPE, "float32")
        assert [info.name for info in opened.outputs] == list(stand_in.OUTPUTS)
        for seed in range(3):
            batch = stand_in.images(2, seed)
            outputs = opened.infer(batch)
            for found, expected in zip(outputs.values(), stand_in.expected(batch), strict=True):
                np.testing.assert_array_equal(found, expected)
    assert opened.samples == pytest.approx([7.25e-3] * 3, rel=1e-4)
    assert len(opened.walls) == len(opened.copies) == 3
    assert all(0 < seconds < 60 for seconds in opened.walls)
    if generation == "V1":
        assert opened.copies == [None] * 3
    else:
        assert all(0 <= seconds < 1 for pair in opened.copies for seconds in pair)


def test_a_sample_is_of_computing_alone(backend):
    assert not AclBackend.includes_copies
    assert "device compute only" in AclBackend.timer
    with backend(stand_in.model(Path(tempfile.gettempdir()) / "slow.om", seconds=0.2)) as opened:
        opened.infer(BATCH)
    assert opened.samples == pytest.approx([7.25e-3], rel=1e-4)
    assert opened.walls[0] > 0.2


def test_outputs_are_moved_once_and_only_when_they_are_fetched(backend):
    with backend() as opened:
        outputs = opened.infer(BATCH)
        opened.compute(stand_in.images(2, 1))
        for found, expected in zip(outputs.values(), stand_in.expected(BATCH), strict=True):
            np.testing.assert_array_equal(found, expected)
        opened.fetch()()
        for found, expected in zip(outputs.values(), stand_in.expected(stand_in.images(2, 1)), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_worker_that_dies_while_outputs_are_on_their_way_is_lost(backend, monkeypatch):
    with backend() as opened:
        opened.compute(BATCH)
        monkeypatch.setattr(opened._worker, "ask", lambda *arguments, **request: {})
        fetched = opened.fetch()
        psutil.Process(opened.worker_pid).kill()
        with pytest.raises(DeviceLostError, match="ended with signal 9 in outputs of call 1"):
            fetched()


def test_outputs_that_do_not_come_are_waited_for_as_long_as_a_call_may_take(backend, monkeypatch):
    with backend(call_seconds=0.2) as opened:
        opened.compute(BATCH)
        monkeypatch.setattr(opened._worker, "ask", lambda *arguments, **request: {})
        with pytest.raises(SuiteTimeoutError, match=r"outputs of call 1 were not here after 0\.2 s"):
            opened.fetch()()


def test_outputs_that_could_not_be_written_are_a_failure_of_the_tool(backend, monkeypatch):
    with backend() as opened:
        opened.compute(BATCH)
        transfer = opened._transfer
        transfer._memory[transfer.mark_start :] = b"\xff" * 4
        monkeypatch.setattr(opened._worker, "ask", lambda *arguments, **request: {})
        with pytest.raises(ToolError, match="outputs of call 1 could not be written"):
            opened.fetch()()


def test_each_context_has_a_fresh_worker_and_begins_anew(backend):
    opened, pids = backend(), []
    for _ in range(2):
        with opened:
            assert opened.samples == opened.walls == opened.copies == []
            opened.infer(BATCH)
            pids.append(opened.worker_pid)
            assert psutil.Process(pids[-1]).is_running()
    assert len(set(pids)) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert opened.worker_pid is None


def test_nothing_is_left_behind_also_after_an_error(backend, temporary):
    opened = backend()
    with pytest.raises(ZeroDivisionError) as caught, opened:
        raise ZeroDivisionError(opened.worker_pid, opened.infer(BATCH))
    assert not psutil.pid_exists(caught.value.args[0])
    assert list(temporary.iterdir()) == []


def test_what_both_processes_map_has_no_name_any_more(backend, temporary):
    with backend() as opened:
        (folder,) = temporary.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert opened.infer(BATCH)


# Each of these the third generation refuses when it sees them.
def test_a_model_behind_a_link_writable_for_all_under_an_odd_name_runs(backend, tmp_path):
    folder = tmp_path / "models of d0 \N{MULTIPLICATION SIGN}"
    folder.mkdir()
    stand_in.model(folder / "d0_bs2.om").chmod(0o666)
    (folder / "latest").symlink_to("d0_bs2.om")
    with backend(folder / "latest") as opened:
        assert opened.infer(BATCH)


def test_the_simulated_device_computes_the_graph(simulated):
    pytest.importorskip("onnxruntime")
    with simulated() as opened:
        np.testing.assert_array_equal(opened.infer(BATCH)["y"], np.maximum(BATCH, 0))


# -- models that do not keep the contract ------------------------------------------------------------------------------

DYNAMIC, PIXELS, HALF = replace(RAW, shape=(-1, 3, 4, 4)), replace(RAW, dtype="uint8"), replace(RAW, dtype="float16")


@pytest.mark.parametrize(
    ("inputs", "outputs", "message", "remedy"),
    [
        ([PIXELS], [RAW], r"small\.om: x\.1 is uint8", "without AIPP"),
        ([HALF], [RAW], r"small\.om: x\.1 is float16", "--output_type=FP32"),
        ([RAW], [RAW, HALF], r"small\.om: x\.1 is float16", "--output_type=FP32"),
        ([DYNAMIC], [RAW], r"small\.om: x\.1 float32\[-1, 3, 4, 4\] is dynamic", "one model for each batch size"),
        ([RAW], [DYNAMIC], r"small\.om: x\.1 float32\[-1, 3, 4, 4\] is dynamic", "one model for each batch size"),
        ([RAW, RAW], [RAW], r"small\.om has 2 inputs: x\.1 float32\[2, 3, 4, 4\], x\.1", ""),
        ([], [RAW], r"small\.om has 0 inputs: none", ""),
    ],
)
def test_a_model_of_another_kind_violates_the_contract(backend, monkeypatch, inputs, outputs, message, remedy):
    answer = {"inputs": [described(tensor) for tensor in inputs], "outputs": [described(tensor) for tensor in outputs]}
    monkeypatch.setattr(support.backends.ascend._Worker, "ask", lambda *arguments, **request: answer)
    assert remedy in refused(backend(), ContractViolationError, message).remedy


def described(tensor, surplus=0):
    size = abs(int(np.prod(tensor.shape))) * np.dtype(tensor.dtype).itemsize
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "bytes": size + surplus}


def test_a_size_that_contradicts_the_shape_violates_the_contract(backend, monkeypatch):
    answer = {"inputs": [described(RAW)], "outputs": [described(RAW, surplus=4)]}
    monkeypatch.setattr(support.backends.ascend._Worker, "ask", lambda *arguments, **request: answer)
    refused(backend(), ContractViolationError, r"x\.1 float32\[2, 3, 4, 4\] has 388 bytes\n  required: four for each")


@pytest.mark.parametrize(
    ("om", "message"),
    [
        ({"inputs": (PIXELS,), "aipp": True}, "x.1 is uint8"),
        ({"inputs": (DYNAMIC,), "outputs": (DYNAMIC,), "gears": (1, 2)}, "is dynamic"),
    ],
)
def test_the_device_loads_such_a_model_and_the_suite_does_not_run_it(simulated, om, message):
    refused(simulated(om=om), ContractViolationError, message)


# -- models that cannot be loaded --------------------------------------------------------------------------------------


def test_a_missing_model_is_named(backend, tmp_path):
    error = refused(backend(tmp_path / "nowhere.om"), NoDataError, r"/nowhere\.om cannot be read: No such file")
    assert "check the path" in error.remedy


def test_no_room_for_a_copy_is_told_with_its_size(backend, monkeypatch, temporary):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    message = rf"{temporary}\S* has no room for a copy of .*/small\.om\n  required: 0 MiB\n  what to do: set TMPDIR"
    refused(backend(), NoSpaceError, message)


def test_a_damaged_model_cannot_be_loaded(simulated, tmp_path):
    path = compiled(tmp_path / "damaged.om")
    path.write_bytes(path.read_bytes()[:-1])
    error = refused(simulated(path=path), ToolError, r"loading the model .*/damaged\.om: the model cannot be loaded")
    assert "EE4001" in error.found
    assert "compile it for this chip" in error.remedy


def test_a_model_of_another_chip_cannot_be_loaded(simulated):
    refused(
        simulated(om={"soc_version": "Ascend310"}), ToolError, "compiled for another chip.*\n.*\n(.*\n)*.*Ascend310,"
    )


@pytest.mark.parametrize("generation", ["V1", "V2", "V3"])
def test_a_device_that_is_not_there_is_named(backend, generation):
    error = refused(backend(generation=generation, device_id=7), NoDeviceError, "no device of this id .107001 invalid")
    assert "--device-id" in error.remedy


def test_an_interpreter_that_is_not_there_is_named(backend, temporary):
    error = refused(backend(python=python("/no/python")), ToolError, "/no/python cannot be started: .*No such file")
    assert error.remedy == "check --acl-python"
    assert list(temporary.iterdir()) == []


# -- devices that fail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("no-memory", NoSpaceError, r"too little memory \(245000 memory allocation failed\)"),
        ("crash-at-load", DeviceLostError, r"ended with signal 6 in loading the model .*\n.*acl init success(.*\n)*"),
    ],
)
def test_a_device_that_fails_at_load_is_told_with_what_it_said(simulated, temporary, fault, kind, message):
    refused(simulated(fault), kind, message)
    assert [path.name for path in temporary.iterdir() if path.name.startswith("acceptance")] == []


def test_a_crash_ends_the_worker_and_not_the_suite(simulated):
    pytest.importorskip("onnxruntime")
    with simulated("crash") as opened:
        with pytest.raises(DeviceLostError, match=r"signal 6 in call 1\n(.*\n)*.*device 0: terminate called") as caught:
            opened.infer(BATCH)
        # Asked once more, it is gone as before.
        with pytest.raises(DeviceLostError, match="signal 6 in call 2"):
            opened.infer(BATCH)
    assert "dmesg" in caught.value.remedy
    assert opened.samples == []


def test_a_device_that_falls_off_the_bus_is_lost(simulated):
    pytest.importorskip("onnxruntime")
    with simulated("vanish") as opened:
        for _ in range(3):
            opened.infer(BATCH)
        with pytest.raises(DeviceLostError, match=r"call 4: .*\(507899 error inside the driver\)"):
            opened.infer(BATCH)
    assert len(opened.samples) == 3


# As long as nobody waits for; the worker holds the interpreter's lock meanwhile.
@pytest.fixture
def slow(tmp_path):
    return stand_in.model(tmp_path / "slow.om", seconds=30)


def test_a_call_that_hangs_ends_at_its_limit_in_any_thread(backend, slow):
    errors = []

    def work():
        with backend(slow, call_seconds=0.3) as opened:
            try:
                opened.infer(BATCH)
            except SuiteTimeoutError as error:
                errors.append(error)

    start = time.monotonic()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert time.monotonic() - start < 15
    assert "call 1 had not ended after 0.3 s\n    [INFO] acl init success" in errors[0].found
    assert "npu-smi" in errors[0].remedy


def test_a_load_that_hangs_ends_at_its_limit(backend, tmp_path):
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\necho waiting for the device\nexec sleep 30\n")
    hanging.chmod(0o755)
    opened = backend(python=python(hanging), load_seconds=1)
    refused(opened, SuiteTimeoutError, r"loading the model .* had not ended after 1 s\n    waiting for the device")


def test_the_alarm_of_a_deadline_ends_the_worker_and_tells_what_it_said(backend, slow, temporary):
    message = r"the pass took longer than 0\.3 s\n    \[INFO\] acl init success"
    with backend(slow) as opened:
        with pytest.raises(SuiteTimeoutError, match=message), deadline(0.3, "the pass"):
            opened.infer(BATCH)
        psutil.Process(opened.worker_pid).wait(10)
    assert list(temporary.iterdir()) == []


def test_an_interrupted_call_ends_the_worker_at_once(backend, slow, temporary):
    def interrupted(opened):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        opened.infer(BATCH)

    with backend(slow) as opened:
        with pytest.raises(KeyboardInterrupt):
            interrupted(opened)
        psutil.Process(opened.worker_pid).wait(10)
    assert list(temporary.iterdir()) == []


def test_a_device_that_does_not_unload_in_time_is_given_back_by_force(backend, monkeypatch):
    monkeypatch.setattr(support.backends.ascend, "FAREWELL", 0.2)
    with backend() as opened:
        worker = psutil.Process(opened.worker_pid)
        worker.suspend()
    assert not worker.is_running()


@pytest.mark.parametrize("times", [[], [1.0, 2.0]])
def test_a_call_is_one_execution(backend, monkeypatch, times):
    with backend() as opened:
        recorded = {"compute": times, "h2d": None, "d2h": None}
        monkeypatch.setattr(opened._worker, "ask", lambda *arguments, **request: recorded)
        with pytest.raises(ToolError, match=f"the runtime recorded {len(times)} executions for one call"):
            opened.infer(BATCH)
