import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.simulator.device import Device
from support.simulator.om import read_om, write_om
from support.simulator.precision import lowered
from support.simulator.state import DeviceState

onnxruntime = pytest.importorskip("onnxruntime")

PROJECT = Path(__file__).resolve().parents[2]


class Files:
    def __init__(self, folder, om):
        self.om, self.input, self.output = om, folder / "input", folder / "output"
        sizes = [np.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize for tensor in om.outputs]
        self.ends = np.cumsum(sizes)
        self.output.write_bytes(bytes(int(self.ends[-1])))

    def write(self, images):
        self.input.write_bytes(images.tobytes())
        return {"input": str(self.input), "output": str(self.output), "since": time.perf_counter()}

    def read(self):
        parts = np.split(np.fromfile(self.output, np.uint8), self.ends[:-1])
        return [part.view(info.dtype).reshape(info.shape) for part, info in zip(parts, self.om.outputs, strict=True)]


class Simulated:
    def __init__(self, tools, path):
        self.tools, self.path = tools, path
        self.device = Device(tools.folder, 0)
        self.loaded = self.device.answer({"op": "load", "model": str(path), "device": 0})

    def run(self, images):
        files = Files(self.tools.folder, read_om(self.path))
        answer = self.device.answer({"op": "run", "model": self.loaded["model"], **files.write(images)})
        return answer, files.read()


@pytest.fixture
def simulated(toolchain, small):
    def start(text="sim:310P3", model=None, **changes):
        tools = toolchain(text)
        return Simulated(tools, tools.compile(model or small(), **changes))

    return start


@pytest.fixture
def images():
    return np.random.default_rng(3).normal(size=(2, 3, 16, 16)).astype(np.float32)


def expected(path, images, saturate):
    om = read_om(path)
    graph = lowered(onnx.load_from_string(om.onnx), om.lowered, saturate=saturate)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": images})


def equal(left, right):
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


def edited(path, **changes):
    write_om(path, dataclasses.replace(read_om(path), **changes))


def test_a_loaded_model_is_described_in_the_order_of_its_outputs(simulated):
    assert simulated().loaded == {
        "ok": True,
        "model": 0,
        "batch": 2,
        "inputs": [
            {"name": "x", "datatype": 0, "format": 0, "shape": [2, 3, 16, 16], "size": 6144, "realsize": 6144},
        ],
        "outputs": [
            {
                "name": "class_head:0:classes",
                "datatype": 0,
                "format": 0,
                "shape": [2, 6, 8, 8],
                "size": 3072,
                "realsize": 3072,
            },
            {
                "name": "box_head:0:boxes",
                "datatype": 0,
                "format": 0,
                "shape": [2, 2, 8, 8],
                "size": 1024,
                "realsize": 1024,
            },
        ],
    }


@pytest.mark.parametrize("mode", ["compute", "paced"])
def test_a_run_gives_what_the_lowered_graph_computes_and_the_published_time(simulated, images, mode):
    device = simulated(f"sim:310P3,{mode}")
    answer, outputs = device.run(images)
    assert answer["ok"]
    # Between 124 images a second at batch 1 and 260 at batch 4.
    assert 2e3 / 260 < answer["compute_ms"] < 2e3 / 124
    assert equal(outputs, expected(device.path, images, saturate=True))


def test_a_paced_device_replays_each_image_in_its_own_slot_no_faster_than_published(simulated, images):
    device = simulated("sim:310P3,paced")
    _, first = device.run(images)
    start = time.perf_counter()
    answer, second = device.run(images[::-1].copy())
    assert time.perf_counter() - start >= answer["compute_ms"] / 1e3
    assert equal(second, [output[::-1] for output in first])


def test_a_paced_device_replays_no_outputs_of_another_model(simulated, images, small):
    simulated("sim:310P3,paced").run(images)
    _, outputs = (other := simulated("sim:310P3,paced", model=small(mean=1.0))).run(images)
    assert equal(outputs, expected(other.path, images, saturate=True))


@pytest.mark.parametrize(("generation", "finite"), [("v1", False), ("v2", False), ("v3", True)])
def test_the_same_model_overflows_or_saturates_as_its_runtime_does(simulated, images, small, generation, finite):
    device = simulated(
        f"sim:310P3,{generation}", model=small(mean=400.0), precision_mode="force_fp16", modify_mixlist=None
    )
    _, outputs = device.run(images)
    assert all(np.isfinite(output).all() for output in outputs) == finite


def test_outputs_have_the_type_they_were_compiled_to(simulated, images):
    device = simulated(output_type="FP16")
    assert [info["datatype"] for info in device.loaded["outputs"]] == [1, 1]
    assert [info["realsize"] for info in device.loaded["outputs"]] == [1536, 512]
    _, outputs = device.run(images)
    assert equal(outputs, expected(device.path, images, saturate=True))


def test_a_dynamic_model_is_described_with_its_largest_gear_and_does_not_run(simulated):
    device = simulated(dynamic_batch_size="1,2,4", input_shape="x:-1,3,16,16")
    (described,) = device.loaded["inputs"]
    assert (described["shape"], described["realsize"]) == ([-1, 3, 16, 16], 4 * 3072)
    request = {"op": "run", "model": 0, "input": "", "output": ""}
    assert device.device.answer(request) == {"ok": False, "code": "-1", "log": ["[ERROR] acl execute failed:145000"]}


def test_a_model_that_takes_pixels_is_described_so(simulated, tmp_path):
    (tmp_path / "aipp.cfg").write_text("aipp_op { aipp_mode: static }")
    (described,) = simulated(insert_op_conf=tmp_path / "aipp.cfg").loaded["inputs"]
    assert (described["datatype"], described["format"], described["realsize"]) == (4, 1, 2 * 16 * 16 * 3)


@pytest.mark.parametrize(
    ("spoil", "log"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
        (lambda path: edited(path, soc_version="Ascend310"), "the model is of Ascend310, the device is Ascend310P3"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(toolchain, small, spoil, log):
    tools = toolchain()
    path = tools.compile(small())
    spoil(path)
    answer = Device(tools.folder, 0).answer({"op": "load", "model": str(path), "device": 0})
    assert (answer["ok"], answer["code"]) == (False, "ret:1")
    assert log in answer["log"][0]


def test_models_keep_their_numbers_when_others_are_unloaded(simulated, images):
    device = simulated()
    second = device.device.answer({"op": "load", "model": str(device.path), "device": 0})["model"]
    device.device.answer({"op": "unload", "model": 0})
    third = device.device.answer({"op": "load", "model": str(device.path), "device": 0})["model"]
    assert len({0, second, third}) == 3


def test_the_host_sees_who_holds_the_device_until_its_last_model_is_unloaded(simulated):
    device = simulated()
    state = DeviceState(device.tools.folder, 0)
    assert len(state.clients) == 1
    device.device.answer({"op": "unload", "model": 0})
    assert state.clients == ()


def test_the_fault_nan_at_64_shows_at_batch_64_alone(simulated, small):
    images = np.random.default_rng(3).normal(size=(64, 3, 16, 16)).astype(np.float32)
    device = simulated("sim:310P3,fault=nan-at-64", model=small(64), input_shape="x:64,3,16,16")
    _, (classes, boxes) = device.run(images)
    assert np.isnan(classes[0]).all()
    assert np.isfinite(classes[1:]).all()
    assert np.isfinite(boxes).all()


def test_the_fault_nan_at_64_does_not_show_at_another_batch(simulated, images):
    _, outputs = simulated("sim:310P3,fault=nan-at-64").run(images)
    assert all(np.isfinite(output).all() for output in outputs)


@pytest.mark.parametrize("mode", ["compute", "paced"])
def test_the_fault_previous_outputs_is_one_run_behind(simulated, images, mode):
    device = simulated(f"sim:310P3,{mode},fault=previous-outputs")
    found = [device.run(batch)[1] for batch in (images, 2 * images, 3 * images)]
    right = [expected(device.path, batch, saturate=True) for batch in (images, 2 * images)]
    assert equal(found[0], right[0])
    assert equal(found[1], right[0])
    assert equal(found[2], right[1])


def test_the_fault_vanish_ends_a_pass_in_its_middle_and_for_good(simulated, images):
    device = simulated("sim:310P3,fault=vanish")
    answers = [device.run(images)[0] for _ in range(5)]
    assert [answer["ok"] for answer in answers] == [True] * 3 + [False] * 2
    assert answers[3]["code"] == "507899"
    assert DeviceState(device.tools.folder, 0).vanished
    again = Device(device.tools.folder, 0).answer({"op": "load", "model": str(device.path), "device": 0})
    assert not again["ok"]


def test_the_fault_no_memory_refuses_the_model(simulated):
    loaded = simulated("sim:310P3,fault=no-memory").loaded
    assert (loaded["code"], loaded["log"]) == ("ret:1", ["[ERROR] device memory is not enough, ret:245000"])


@pytest.fixture
def process(toolchain, small):
    started = []

    def start(text):
        tools = toolchain(text)
        path = tools.compile(small())
        command = [sys.executable, "-m", "support.simulator.device", tools.folder, "0"]
        process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, {"op": "load", "model": str(path), "device": 0}, Files(tools.folder, read_om(path))

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ask(process, request):
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def test_the_process_answers_a_line_for_a_line_and_ends_with_its_input(process, images):
    device, load, files = process("sim:310P3")
    assert json.loads(ask(device, load))["model"] == 0
    assert json.loads(ask(device, {"op": "run", "model": 0, **files.write(images)}))["ok"]
    output, errors = device.communicate(timeout=30)
    assert (device.returncode, output, errors) == (0, "", "")


def test_the_fault_hang_gives_no_answer_and_leaves_no_process_behind(process, images):
    device, load, files = process("sim:310P3,fault=hang")
    ask(device, load)
    device.stdin.write(json.dumps({"op": "run", "model": 0, **files.write(images)}) + "\n")
    device.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        device.wait(0.2)
    output, errors = device.communicate(timeout=30)
    assert (device.returncode, output, errors) == (0, "", "")


def test_the_fault_crash_aborts_in_the_first_run(process, images):
    device, load, files = process("sim:310P3,fault=crash")
    assert json.loads(ask(device, load))["ok"]
    assert ask(device, {"op": "run", "model": 0, **files.write(images)}) == ""
    assert device.wait(30) == -signal.SIGABRT


def test_the_fault_crash_at_load_aborts_before(process):
    device, load, _ = process("sim:310P3,fault=crash-at-load")
    assert ask(device, load) == ""
    assert device.wait(30) == -signal.SIGABRT


def test_a_run_of_a_process_that_was_killed_is_not_going_on(tmp_path):
    code = (
        "import os; from pathlib import Path; from support.simulator.state import DeviceState\n"
        f"with DeviceState(Path({str(tmp_path)!r}), 0).running(): os.kill(os.getpid(), 9)"
    )
    state = DeviceState(tmp_path, 0)
    with state.running():
        assert state.at_work
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not state.at_work
