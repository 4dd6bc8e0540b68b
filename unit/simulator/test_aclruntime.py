import ast
import ctypes
import gc
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from support.ascend.acl_worker import generation as told_generation
from support.simulator.host import SITE
from unit.simulator import stand_in

GENERATIONS = ("V1", "V2", "V3")
BATCH = stand_in.images(2)
NAMES = list(stand_in.OUTPUTS)
EVERYWHERE = {
    "session_options",
    "InferenceSession",
    "model",
    "tensor_desc",
    "dtype",
    "type",
    "Tensor",
    "batch",
    "sumary",
}
SINCE = {"V1": EVERYWHERE, "V2": {"BaseTensor", "MemorySummary"}, "V3": {"infer_options"}}


class Runtime:
    def __init__(self, folder, generation):
        self.generation, self.folder = generation, folder
        self.module = stand_in.runtime_of(stand_in.host(folder / "host", f"sim:310P3,{generation.lower()},devices=2"))
        self.om = str(stand_in.model(folder / "small.om"))

    def session(self, om=None, device=0, **options):
        chosen = self.module.session_options()
        for name, value in options.items():
            setattr(chosen, name, value)
        return self.module.InferenceSession(om or self.om, device, chosen)

    def tensor(self, array=BATCH):
        return self.module.Tensor(array)

    def close(self):
        gc.collect()
        self.module._Device.close_all()


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory):
    found = {name: Runtime(tmp_path_factory.mktemp(name), name) for name in GENERATIONS}
    yield found
    for runtime in found.values():
        runtime.close()


@pytest.fixture(params=GENERATIONS)
def runtime(request, runtimes):
    return runtimes[request.param]


# One that nobody uses afterwards.
@pytest.fixture
def fresh(tmp_path):
    made = []

    def make(generation):
        folder = tmp_path / f"{generation}-{len(made)}"
        folder.mkdir()
        made.append(Runtime(folder, generation))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


@pytest.fixture
def said(capfd):
    def read():
        ctypes.CDLL(None).fflush(None)
        return capfd.readouterr().out

    return read


def arrays(tensors):
    for tensor in tensors:
        tensor.to_host()
    return [np.array(tensor) for tensor in tensors]


@pytest.mark.parametrize("name", ["aclruntime.py", "ais_bench/__main__.py"])
def test_the_modules_of_the_site_are_python_3_7(name):
    ast.parse((SITE / name).read_text(), feature_version=(3, 7))


def test_each_generation_has_its_members(runtime):
    older = GENERATIONS[: GENERATIONS.index(runtime.generation) + 1]
    expected = set().union(*(SINCE[name] for name in older))
    assert {name for names in SINCE.values() for name in names if hasattr(runtime.module, name)} == expected
    assert told_generation(runtime.module) == runtime.generation


def test_each_generation_has_its_methods(runtime):
    session, generation = runtime.module.InferenceSession, runtime.generation
    assert hasattr(session, "run_setinputs") == (generation == "V1")
    assert hasattr(session, "finalize") == (generation != "V1")
    assert hasattr(session, "free_resource") == (generation == "V3")
    assert not {"summary", "reset_summaryinfo"} & set(dir(session))


def test_a_session_takes_three_positional_arguments_of_the_right_types(runtime):
    session, options = runtime.module.InferenceSession, runtime.module.session_options()
    for wrong in ([runtime.om, 0], [runtime.folder / "small.om", 0, options], [runtime.om, -1, options]):
        with pytest.raises(TypeError, match="incompatible"):
            session(*wrong)
    with pytest.raises(TypeError):
        session(model_path=runtime.om, device_id=0, options=options)
    with pytest.raises(AttributeError):
        options.loops = 2


def test_tensors_are_described(runtime):
    session = runtime.session()
    (found,) = session.get_inputs()
    assert (found.name, found.shape, found.datatype.name, int(found.format)) == ("x.1", [2, 3, 4, 4], "float32", 0)
    assert found.size == found.realsize == BATCH.nbytes
    assert [desc.name for desc in session.get_outputs()] == NAMES


def test_a_run_gives_the_outputs_asked_for_in_the_memory_of_the_device(runtime):
    session = runtime.session()
    session.set_staticbatch()
    outputs = session.run(NAMES[::-1], [runtime.tensor()])
    assert [output.type for output in outputs] == [runtime.module.type.memory_device] * 2
    with pytest.raises(RuntimeError, match=r"tensor is in npu\. can't convert to numpy array"):
        np.array(outputs[0])
    for found, expected in zip(arrays(outputs), stand_in.expected(BATCH)[::-1], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_outputs_are_those_of_their_own_run(runtime):
    session = runtime.session()
    first = session.run(NAMES[:1], [runtime.tensor()])
    session.run(NAMES[:1], [runtime.tensor(BATCH + 1)])
    np.testing.assert_array_equal(arrays(first)[0], 2 * BATCH)


@pytest.mark.parametrize("changed", [np.transpose(BATCH, (0, 1, 3, 2)), np.moveaxis(BATCH, 1, 3)])
def test_strides_are_ignored(runtime, changed):
    (found,) = arrays(runtime.session().run(NAMES[:1], [runtime.tensor(changed)]))
    np.testing.assert_array_equal(found, 2 * BATCH)
    (right,) = arrays(runtime.session().run(NAMES[:1], [runtime.tensor(np.ascontiguousarray(changed))]))
    assert not np.array_equal(right, found)


def test_a_slice_is_read_as_the_memory_from_its_first_element_on(runtime):
    values = np.arange(10, dtype=np.int32)
    assert np.array(runtime.tensor(values[1::2])).tolist() == [1, 2, 3, 4, 5]
    assert np.array(runtime.tensor(values[::-1])).tolist() == [9, *[0] * 9]
    assert np.array(runtime.tensor(np.broadcast_to(values[3:4], 3))).tolist() == [3, 0, 0]


def test_a_type_it_does_not_know_becomes_bytes(runtime):
    tensor = runtime.tensor(np.array([1, 2], ">f4"))
    assert tensor.dtype.name == "uint8"
    assert np.array(tensor).tobytes() == np.array([1], ">f4").tobytes()[:2]


def test_what_is_no_buffer_becomes_no_tensor(runtime):
    with pytest.raises(TypeError):
        runtime.tensor([1.0, 2.0])


def test_any_bytes_of_the_right_number_are_taken(runtime):
    (found,) = arrays(runtime.session().run(NAMES[:1], [runtime.tensor(BATCH.view(np.int8))]))
    np.testing.assert_array_equal(found, 2 * BATCH)


def test_tensors_are_joined(runtime):
    halves = [runtime.tensor(BATCH[:1]), runtime.tensor(BATCH[1:])]
    np.testing.assert_array_equal(np.array(runtime.module.batch(halves)), BATCH)
    assert np.array(runtime.module.batch(halves, True)).shape == (2, 1, 3, 4, 4)


def test_memory_of_somebody_else_is_run_from_the_second_generation_on(runtimes):
    for name in ("V2", "V3"):
        tensor = runtimes[name].module.BaseTensor(BATCH.ctypes.data, BATCH.nbytes)
        (found,) = arrays(runtimes[name].session().run(NAMES[:1], [tensor]))
        np.testing.assert_array_equal(found, 2 * BATCH)


def test_an_array_is_no_input(runtime):
    with pytest.raises(TypeError, match="incompatible"):
        runtime.session().run(NAMES, [BATCH])


def test_an_input_of_another_size_is_refused(runtime, said):
    session = runtime.session()
    with pytest.raises(RuntimeError, match=r"^\[-1\]\[ACL: general failure\] $"):
        session.run(NAMES, [runtime.tensor(BATCH[:1])])
    check = "check" if runtime.generation == "V3" else "Check"
    assert f"{check} i:0 name:x.1 in size:192 needsize:384 not match" in (printed := said())
    assert "Check InVector failed ret:-1" in printed


def test_another_number_of_inputs_is_refused(runtime, said):
    code = r"\[3\]\[ACL: runtime failure\] " if runtime.generation == "V3" else r"\[-1\]\[ACL: general failure\] "
    with pytest.raises(RuntimeError, match=f"^{code}$"):
        runtime.session().run(NAMES, [runtime.tensor(), runtime.tensor()])
    assert "[WARN] intensors in:2 need:1 not match" in said()


def test_an_unknown_output_is_refused(runtime, said):
    with pytest.raises(RuntimeError, match=r"^\[-1\]"):
        runtime.session().run(["boxes"], [runtime.tensor()])
    assert "outnames boxes not valid" in said()


def test_inputs_by_name_are_found_by_name(runtime, said):
    session = runtime.session()
    (found,) = arrays(session.run(NAMES[:1], {"x.1": runtime.tensor()}))
    np.testing.assert_array_equal(found, 2 * BATCH)
    with pytest.raises(RuntimeError, match=r"^\[-1\]"):
        session.run(NAMES, {"x": runtime.tensor()})
    assert "intensors i:0 name:x.1 not find" in said()


def test_every_execution_has_a_time_until_the_reset(runtime, said):
    session = runtime.session(loop=3)
    session.run(NAMES, [runtime.tensor()])
    times = session.sumary().exec_time_list
    assert len(times) == 3
    assert "\rloop inference exec: (3/3)" in said()
    if runtime.generation == "V3":
        assert all(np.float32(value) == value for pair in times for value in pair)
        times = [end - start for start, end in times]
    assert times == pytest.approx([7.25] * 3, abs=0.01)
    session.reset_sumaryinfo()
    assert session.sumary().exec_time_list == []


def test_times_of_the_third_generation_get_coarse_as_a_session_ages(runtimes):
    session = runtimes["V3"].session()
    session._zero -= 8388.608 * 2  # 2**24 ms
    session.run(NAMES, [runtimes["V3"].tensor()])
    ((start, end),) = session.sumary().exec_time_list
    assert end - start in (6, 8)


def test_copies_are_timed_from_the_second_generation_on(runtimes):
    for name in ("V2", "V3"):
        copies = runtimes[name].module.MemorySummary()
        copies.reset()
        arrays(runtimes[name].session().run(NAMES, [runtimes[name].tensor()]))
        again = runtimes[name].module.MemorySummary()
        assert (len(again.H2D_time_list), len(again.D2H_time_list)) == (1, 2)
        copies.reset()
        assert again.H2D_time_list == []


def test_the_first_generation_runs_in_three_steps_too(runtimes):
    session = runtimes["V1"].session()
    session.run_setinputs([runtimes["V1"].tensor()])
    session.run_execute(2)
    np.testing.assert_array_equal(arrays(session.run_getoutputs(NAMES))[0], 2 * BATCH)
    assert len(session.sumary().exec_time_list) == 2


def test_a_device_that_is_not_there_is_refused(runtime, said):
    with pytest.raises(RuntimeError, match=r"^\[107001\]\[Error code unknown\] $"):
        runtime.session(device=2)
    newer = runtime.generation == "V3"
    assert ("create context failed. ret=107001" if newer else "SetDevice failed. ret=107001") in said()


def test_a_tensor_cannot_go_to_a_device_that_is_not_there(runtime, said):
    tensor = runtime.tensor()
    with pytest.raises(RuntimeError, match=r"^\[1004\]\[Invalid parameter\] $"):
        tensor.to_device(2)
    equal = " or equal to" if runtime.generation == "V3" else ""
    assert f"deviceId(2) is bigger than{equal} deviceCount(2)" in said()


@pytest.mark.parametrize("generation", ["V1", "V2"])
def test_a_missing_model_fails_like_a_bad_one(runtimes, generation, said):
    with pytest.raises(RuntimeError, match=r"^\[1\]\[ACL: invalid parameter\] $"):
        runtimes[generation].session("/nowhere/d0.om")
    printed = said()
    assert "[ERROR] load model from file failed, model file is /nowhere/d0.om" in printed
    assert "[WARN] Check failed:processModel->LoadModelFromFile(modelPath), ret:1" in printed


def test_a_damaged_model_fails_at_load(runtime, said):
    damaged = runtime.folder / "damaged.om"
    damaged.write_text("no model")
    with pytest.raises(RuntimeError, match=r"^\[1\]\[ACL: invalid parameter\] $"):
        runtime.session(str(damaged))
    assert "EE4001" in said()


def bad_paths(runtime, folder):
    stand_in.model(folder / "wide.om").chmod(0o666)
    (folder / "link.om").symlink_to(runtime.om)
    stand_in.model(folder / "a b.om")
    stand_in.model(folder / "small.bin")
    return [str(folder / name) for name in ("wide.om", "link.om", "a b.om", "small.bin")]


def test_only_the_third_generation_looks_at_the_path(runtimes, tmp_path):
    bad = bad_paths(runtimes["V3"], tmp_path)
    for path in [*bad, "/nowhere/d0.om"]:
        with pytest.raises(RuntimeError, match=r"^please check model path$"):
            runtimes["V3"].session(path)
    for path in bad:
        runtimes["V1"].session(path)
        runtimes["V2"].session(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loop": 0}, "loop num out of range. Please check."),
        ({"loop": 100_001}, "loop num out of range. Please check."),
        ({"log_level": 5}, "log level out of range. Please check."),
        ({"acl_json_path": "/nowhere/acl.json"}, "please check acl json path"),
        ({"device": 256}, "device id is out of range"),
    ],
)
def test_the_third_generation_looks_at_its_options(runtimes, options, message):
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        runtimes["V3"].session(**options)
    if "device" not in options:
        runtimes["V1"].session(**options)


def in_thread(task):
    raised = []

    def caught():
        try:
            task()
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=caught)
    thread.start()
    thread.join()
    return raised


def test_older_sessions_belong_to_the_thread_that_made_them(runtime):
    session = runtime.session()
    raised = in_thread(lambda: session.run(NAMES, [runtime.tensor()]))
    assert raised == ([] if runtime.generation == "V3" else ["[107002][Error code unknown] "])


def ticks_while(task):
    ticks, over = [], threading.Event()

    def tick():
        while not over.wait(0.002):
            ticks.append(None)

    thread = threading.Thread(target=tick)
    thread.start()
    task()
    found = len(ticks)
    over.set()
    thread.join()
    return found


def test_only_the_first_generation_lets_other_threads_go_on_while_it_runs(runtime):
    slow = stand_in.model(runtime.folder / "slow.om", seconds=0.2)
    session, tensor = runtime.session(str(slow)), runtime.tensor()
    ticks = ticks_while(lambda: session.run(NAMES, [tensor]))
    assert ticks > 20 if runtime.generation == "V1" else ticks < 20


def test_what_happens_is_printed_by_native_code(fresh, said):
    runtime = fresh("V3")
    first, second = runtime.session(), runtime.session(device=1)
    del first, second
    opened = ["[INFO] open device 0 success", "[INFO] create new context"]
    loaded = [f"[INFO] load model {runtime.om} success", "[INFO] create model description success"]
    lines = said().splitlines()
    assert lines[:5] == ["[INFO] acl init success", *opened, *loaded]
    assert lines[5] == "[INFO] open device 1 success"
    assert lines[-1].startswith("[INFO] unload model success, model Id is ")


def test_a_session_of_the_second_generation_ends_the_runtime(fresh, said):
    runtime = fresh("V2")
    session = runtime.session()
    session.finalize()
    assert said().splitlines()[-2:] == ["[INFO] end to reset device is 0", "[INFO] end to finalize acl"]
    with pytest.raises(RuntimeError):
        session.run(NAMES, [runtime.tensor()])
    with pytest.raises(RuntimeError):
        runtime.session()


def test_the_third_generation_frees_a_session_and_ends_the_runtime_apart(fresh, said):
    runtime = fresh("V3")
    first, second = runtime.session(), runtime.session()
    first.free_resource()
    with pytest.raises(RuntimeError):
        first.run(NAMES, [runtime.tensor()])
    second.run(NAMES, [runtime.tensor()])
    second.free_resource()
    runtime.module.InferenceSession.finalize()
    assert "[INFO] end to reset device 0\n" in said()


def test_nothing_is_left_behind(fresh):
    runtime = fresh("V3")
    before = nameless_files()
    session = runtime.session()
    session.run(NAMES, [runtime.tensor()])
    assert len(nameless_files() - before) == 2
    process = runtime.module._Device.get(0)._process
    del session
    runtime.close()
    assert nameless_files() == before
    assert process.poll() == 0


# Open files whose name is gone: a process that is killed leaves nothing of them behind.
def nameless_files():
    names = {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    return {name for name in names if name.endswith("(deleted)") and "tensors-" in name}


def test_without_its_environment_the_library_is_not_found(tmp_path):
    host = stand_in.host(tmp_path / "host", "sim:310P3,fault=not-sourced")
    with pytest.raises(ImportError, match=r"libascendcl\.so: cannot open shared object file"):
        stand_in.runtime_of(host)


CRASHING = """
import aclruntime, os, sys
session = aclruntime.InferenceSession(sys.argv[1], 0, aclruntime.session_options())
os.kill(session._device._process.pid, 9)
session.run([], [aclruntime.Tensor(bytearray(384))])
"""


def test_a_device_that_dies_takes_its_process_along(tmp_path):
    host = stand_in.host(tmp_path / "host", "sim:310P3")
    arguments = [sys.executable, "-c", CRASHING, str(stand_in.model(tmp_path / "small.om"))]
    done = subprocess.run(arguments, env=dict(host.env), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGABRT
