import ast
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from support.ascend import acl_worker
from support.ascend.acl_python import WORKER
from support.ascend.transfer import PLACES, Transfer
from unit.ascend.interpreters import OLDEST, OURS, interpreter
from unit.simulator import stand_in

GENERATIONS = ("V1", "V2", "V3")
BATCH = stand_in.images(2)
DESCRIBED = {
    "inputs": [{"name": "x.1", "shape": [2, 3, 4, 4], "dtype": "float32", "bytes": BATCH.nbytes}],
    "outputs": [
        {"name": name, "shape": [2, *shape], "dtype": "float32", "bytes": 8 * int(np.prod(shape))}
        for name, shape in stand_in.OUTPUTS.items()
    ],
}
MODULES = {"__future__", "ctypes", "glob", "json", "mmap", "os", "platform", "signal", "sys", "threading", "typing"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    with pytest.MonkeyPatch.context() as patch:
        # It would take the buffer of C's standard output away.
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        return {name: stand_in.host(folder / name, f"sim:310P3,{name.lower()}") for name in GENERATIONS}


@pytest.fixture(params=GENERATIONS)
def generation(request):
    return request.param


@pytest.fixture(params=[OURS, OLDEST])
def python(request):
    return interpreter(request.param)


# The other side of the worker, as simple as can be.
class Worker:
    def __init__(self, host, python, folder):
        self.log = folder / "native.log"
        their_read, our_write = os.pipe()
        our_read, their_write = os.pipe()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, WORKER, "--serve", str(their_read), str(their_write)],
                env=host.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(their_read, their_write),
            )
        os.close(their_read)
        os.close(their_write)
        self.requests, self.answers = os.fdopen(our_write, "w"), os.fdopen(our_read)

    def ask(self, **request):
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        return json.loads(self.answers.readline())

    def open(self, model, device=0):
        return self.ask(op="open", model=str(model), device=device)

    def close(self):
        self.requests.close()
        self.process.wait(30)
        rest = self.answers.read()
        self.answers.close()
        return rest


@pytest.fixture
def worker(tmp_path):
    made = []

    def start(host, python=sys.executable):
        made.append(Worker(host, python, tmp_path))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()
        each.answers.close()
        each.requests.close()


@pytest.fixture
def model(tmp_path):
    tmp_path.chmod(0o700)
    path = stand_in.model(tmp_path / "small.om")
    path.chmod(0o600)
    return path


def probe(host, python=sys.executable):
    done = subprocess.run([python, WORKER, "--probe"], env=host.env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# -- the file itself ---------------------------------------------------------------------------------------------------


def test_the_worker_is_written_in_python_3_7():
    ast.parse(WORKER.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_the_worker_needs_the_standard_library_numpy_and_the_runtime_alone():
    nodes = list(ast.walk(ast.parse(WORKER.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names == MODULES | {"numpy", "aclruntime"}


# -- what can be imported ----------------------------------------------------------------------------------------------


def test_a_probe_tells_interpreter_generation_and_wheel(hosts, generation, python):
    facts = probe(hosts[generation], python)
    assert facts["generation"] == generation
    assert facts["wheel"] == {"V1": "0.0.1", "V2": "0.0.2", "V3": "0.0.2"}[generation]
    assert facts["python"].startswith("3.")
    assert "error" not in facts


def test_a_probe_tells_why_the_runtime_cannot_be_imported(tmp_path, python):
    host = stand_in.host(tmp_path, "sim:310P3,fault=not-sourced")
    facts = probe(host, python)
    assert facts["error"].startswith("ImportError: libascendcl.so: cannot open shared object file")
    assert "generation" not in facts


def test_modules_beside_the_worker_are_not_found(hosts, tmp_path):
    assert WORKER.with_name("idle.py").is_file()
    (tmp_path / "aclruntime.py").write_text("import idle\n")
    host = SimpleNamespace(env={**hosts["V3"].env, "PYTHONPATH": str(tmp_path)})
    assert probe(host)["error"] == "ModuleNotFoundError: No module named 'idle'"


def test_what_a_library_prints_while_it_loads_is_no_answer(hosts, tmp_path):
    (tmp_path / "aclruntime.py").write_text("import os\nos.write(1, b'[INFO] loaded\\n')\nraise ImportError('later')\n")
    host = SimpleNamespace(env={**hosts["V3"].env, "PYTHONPATH": str(tmp_path)})
    assert probe(host)["error"] == "ImportError: later"


@pytest.mark.parametrize(
    ("module", "session", "expected"),
    [({}, {}, "V1"), ({"BaseTensor": 1}, {}, "V2"), ({"BaseTensor": 1}, {"free_resource": 1}, "V3")],
)
def test_the_generation_is_told_by_what_the_module_has(module, session, expected):
    runtime = SimpleNamespace(InferenceSession=SimpleNamespace(**session), __version__="0.0.2", **module)
    assert acl_worker.generation(runtime) == expected


def test_a_module_without_a_record_has_no_known_version(tmp_path):
    assert acl_worker.wheel_version(SimpleNamespace(__file__=str(tmp_path / "aclruntime.so"))) == ""


# -- serving -----------------------------------------------------------------------------------------------------------


def arrived(transfer, call):
    end = time.monotonic() + 30
    while transfer.mark != call:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_model_is_described_and_run_in_every_generation(hosts, generation, python, worker, model):
    serving = worker(hosts[generation], python)
    found = serving.open(model)
    assert found == {"ok": True, "generation": generation, **DESCRIBED}
    transfer = Transfer(BATCH.nbytes, [item["bytes"] for item in found["outputs"]], None)
    layout = {
        "path": str(transfer.path),
        "input": transfer.input_bytes,
        "places": PLACES,
        "outputs": transfer.outputs_start,
    }
    assert serving.ask(op="map", **layout) == {"ok": True}
    transfer.unlink()
    for call, place in enumerate((0, 1, 0), start=1):
        batch = stand_in.images(2, seed=call)
        transfer.input(place)[:] = batch.reshape(-1).view(np.uint8)
        times = serving.ask(op="run", place=place)
        assert serving.ask(op="fetch", mark=call) == {"ok": True}
        arrived(transfer, call)
        # Of this run alone; the first generation does not time copies.
        assert times["compute"] == [pytest.approx(7.25, abs=1e-3)]
        assert (times["h2d"] is None, times["d2h"] is None) == (generation == "V1", generation == "V1")
        for output, expected in zip(transfer.outputs(), stand_in.expected(batch), strict=True):
            np.testing.assert_array_equal(output.view(np.float32).reshape(expected.shape), expected)


def test_the_model_is_unloaded_and_the_device_given_back(hosts, generation, worker, model):
    serving = worker(hosts[generation])
    serving.open(model)
    assert serving.ask(op="close") == {"ok": True}
    assert serving.close() == ""
    assert serving.process.returncode == 0
    printed = serving.log.read_text()
    assert printed.count("[INFO] unload model success") == 1
    assert printed.count("[INFO] end to finalize acl") == (generation != "V1")


def test_a_failure_is_an_answer_and_native_lines_are_printed_before_it(hosts, worker, model):
    serving = worker(hosts["V2"])
    model.write_text("nothing")
    assert serving.open(model) == {"ok": False, "error": "RuntimeError: [1][ACL: invalid parameter] "}
    assert "[WARN] Check failed:processModel->LoadModelFromFile(modelPath), ret:1" in serving.log.read_text()
    stand_in.model(model)
    assert serving.open(model)["ok"]


def test_native_lines_outlive_a_worker_that_is_killed(hosts, worker, model):
    serving = worker(hosts["V3"])
    serving.open(model)
    serving.process.kill()
    serving.process.wait()
    assert "[INFO] create model description success" in serving.log.read_text()


def test_the_worker_ends_when_the_other_side_closes(hosts, worker, model):
    serving = worker(hosts["V3"])
    serving.open(model)
    serving.close()
    assert serving.process.returncode == 0


SUITE = """
import os, subprocess, sys, time
read, write = os.pipe()
answers, their = os.pipe()
command = [sys.executable, sys.argv[1], "--serve", str(read), str(their)]
worker = subprocess.Popen(command, pass_fds=(read, write, their), stdout=subprocess.DEVNULL)
os.write(write, b'{"op": "open", "model": "%s", "device": 0}\\n' % sys.argv[2].encode())
os.read(answers, 1)
print(worker.pid, flush=True)
time.sleep(60)
"""


def test_the_worker_dies_with_a_suite_that_is_killed(hosts, model):
    # This worker holds a writing end of its own pipe, so that it cannot notice that the other one closed.
    suite = subprocess.Popen(
        [sys.executable, "-c", SUITE, WORKER, model], env=hosts["V3"].env, stdout=subprocess.PIPE, text=True
    )
    worker = psutil.Process(int(suite.stdout.readline()))
    suite.kill()
    suite.communicate()
    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


# -- a runtime that does not keep its word -----------------------------------------------------------------------------


class Desc(SimpleNamespace):
    datatype = SimpleNamespace(name="float32")


class Output:
    def __init__(self, array):
        self.array, self.on_host = array, False

    def to_host(self):
        self.on_host = True

    def __array__(self, dtype=None, copy=None):
        assert self.on_host
        return self.array


# The runtime as the worker sees it; only what it gives is made up.
class Runtime(SimpleNamespace):
    def __init__(self, outputs, times=(1.0,)):
        descs = [Desc(name="y", shape=[2], realsize=8)]
        session = SimpleNamespace(
            set_staticbatch=lambda: None,
            get_inputs=lambda: [Desc(name="x", shape=[2], realsize=8)],
            get_outputs=lambda: descs,
            reset_sumaryinfo=lambda: None,
            run=lambda names, inputs: [Output(array) for array in outputs],
            sumary=lambda: SimpleNamespace(exec_time_list=list(times)),
        )
        super().__init__(
            session_options=SimpleNamespace,
            InferenceSession=lambda path, device, options: session,
            Tensor=lambda array: SimpleNamespace(to_device=lambda device: None),
        )


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    def load(*, input_bytes=8, **facts):
        monkeypatch.setitem(sys.modules, "aclruntime", Runtime(**facts))
        path = tmp_path / "tensors"
        path.write_bytes(bytes(64))
        model = acl_worker.Model("small.om", 0)
        model.map(str(path), input_bytes, places=2, outputs=32)
        return model

    return load


def test_outputs_are_written_when_they_are_fetched_and_the_mark_behind_them(loaded, tmp_path):
    model = loaded(outputs=[np.float32([1, 2])])
    model.run(1)
    assert (tmp_path / "tensors").read_bytes() == bytes(64)
    model.fetch(7)
    model.close()
    after = np.float32([1, 2]).tobytes() + (7).to_bytes(4, sys.byteorder)
    assert (tmp_path / "tensors").read_bytes() == bytes(32) + after + bytes(20)


# A system call may write less than it was asked for.
@pytest.mark.parametrize("most", [1, 3, 8, 9, 11])
def test_outputs_are_written_whole_also_in_pieces(loaded, tmp_path, monkeypatch, most):
    def pwritev(file, pieces, place):
        return os.pwrite(file, b"".join(pieces)[:most], place)

    model = loaded(outputs=[np.float32([1, 2])])
    monkeypatch.setattr(os, "pwritev", pwritev)
    model.run(0)
    model.fetch(7)
    model.close()
    after = np.float32([1, 2]).tobytes() + (7).to_bytes(4, sys.byteorder)
    assert (tmp_path / "tensors").read_bytes() == bytes(32) + after + bytes(20)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it goes to the log
def test_outputs_that_cannot_be_written_leave_the_mark_of_a_failure(loaded, tmp_path, monkeypatch):
    def pwritev(file, pieces, place):
        raise OSError("no room")

    model = loaded(outputs=[np.float32([1, 2])])
    monkeypatch.setattr(os, "pwritev", pwritev)
    model.run(0)
    model.fetch(7)
    model.close()
    assert (tmp_path / "tensors").read_bytes()[40:44] == b"\xff" * 4


def test_of_two_runs_only_one_keeps_outputs(loaded):
    model = loaded(outputs=[np.float32([1, 2])])
    for _ in range(2):
        model.run(0)
        assert len(model.kept) == 1
    model.fetch(1)
    assert model.kept == []


@pytest.mark.parametrize("outputs", [[], [np.zeros(2, np.float32)] * 2])
def test_another_number_of_outputs_is_an_error(loaded, outputs):
    with pytest.raises(ValueError, match=f"the runtime gave {len(outputs)} outputs, declared are 1"):
        loaded(outputs=outputs).run(0)


def test_an_output_of_another_size_is_an_error(loaded):
    with pytest.raises(ValueError, match="output 0 has 12 bytes, declared are 8"):
        loaded(outputs=[np.zeros(3, np.float32)]).run(0)


def test_an_input_of_another_size_never_reaches_the_runtime(loaded):
    with pytest.raises(ValueError, match="the input has 12 bytes, the model takes 8"):
        loaded(outputs=[], input_bytes=12).run(0)


@pytest.mark.parametrize(
    ("times", "expected"), [([1.5], [1.5]), ([(1.0, 2.5)], [1.5]), ([1.5, 2.0], [1.5, 2.0]), ([], [])]
)
def test_times_are_read_in_both_forms(loaded, times, expected):
    assert loaded(outputs=[np.zeros(2, np.float32)], times=times).run(0)["compute"] == expected


def test_copies_nobody_recorded_have_no_time(loaded):
    model = loaded(outputs=[np.zeros(2, np.float32)])
    model.copies = SimpleNamespace(H2D_time_list=[0.25, 0.5], D2H_time_list=[], reset=lambda: None)
    times = model.run(0)
    assert (times["h2d"], times["d2h"]) == (0.75, None)
