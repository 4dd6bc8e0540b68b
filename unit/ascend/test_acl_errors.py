import json
import subprocess
import sys

import pytest

from support.ascend.acl_errors import ACL_CODES, explain, last_lines
from support.errors import (
    ContractViolationError,
    DeviceLostError,
    NoDeviceError,
    NoSpaceError,
    ToolError,
    WrongDeviceError,
)
from unit.simulator import stand_in

LOAD = (
    "[ERROR] load model from file failed, model file is d0.om\n"
    "[WARN] Check failed:processModel->LoadModelFromFile(modelPath), ret:1"
)
# Every situation of the runtime's own table: what Python raises, what native code prints, and what the user must read.
SITUATIONS = [
    ("[1][ACL: invalid parameter] ", LOAD, ToolError, "cannot be loaded", "compile it for this chip"),
    ("please check model path", "", ToolError, "refuses the path", "no soft link"),
    ("please check acl json path", "", ToolError, "configuration", "acl_json_path"),
    ("loop num out of range. Please check.", "", ToolError, "loop count", "report"),
    ("log level out of range. Please check.", "", ToolError, "log level", "report"),
    ("device id is out of range", "", NoDeviceError, "above 255", "--device-id"),
    (
        "[107001][Error code unknown] ",
        "[ERROR] acl open device 9 failed\nSetDevice failed. ret=107001",
        NoDeviceError,
        "no device of this id",
        "ASCEND_RT_VISIBLE_DEVICES",
    ),
    (
        "[107001][Error code unknown] ",
        "create context failed. ret=107001",
        NoDeviceError,
        "107001 invalid device id",
        "--device-id",
    ),
    (
        "[507033][Error code unknown] ",
        "[ERROR] acl open device 0 failed\nSetDevice failed. ret=507033",
        DeviceLostError,
        "507033 device set-up failed",
        "driver, firmware",
    ),
    (
        "[1004][Invalid parameter] ",
        "deviceId(9) is bigger than deviceCount(1)",
        NoDeviceError,
        "no device of this id",
        "--device-id",
    ),
    (
        "[1004][Invalid parameter] ",
        "deviceId(1) is bigger than or equal to deviceCount(1)",
        NoDeviceError,
        "no device of this id",
        "--device-id",
    ),
    (
        "[-1][ACL: general failure] ",
        "[ERROR] Check i:0 name:x.1 in size:4 needsize:8 not match\nCheck InVector failed ret:-1",
        ContractViolationError,
        "input of another size",
        "for this batch size",
    ),
    (
        "[-1][ACL: general failure] ",
        "[ERROR] check i:0 name:x.1 in size:4 needsize:8 not match",
        ContractViolationError,
        "input of another size",
        "for this batch size",
    ),
    (
        "[-1][ACL: general failure] ",
        "[WARN] intensors in:2 need:1 not match",
        ContractViolationError,
        "number of inputs",
        "network's own ONNX",
    ),
    ("[3][ACL: runtime failure] ", "", ContractViolationError, "number of inputs", "network's own ONNX"),
    ("[-1][ACL: general failure] ", "outnames X not valid", ToolError, "output of this name", "report"),
    (
        "[2][ACL: memory allocation fail] ",
        "ret:207001",
        NoSpaceError,
        "207001 memory allocation failed",
        "smaller batch",
    ),
    (
        "copy mem to device failed! cause: malloc device memory data failed!",
        "",
        NoSpaceError,
        "too little memory",
        "smaller batch",
    ),
    (
        "[1][ACL: invalid parameter] ",
        "device memory is not enough, ret:245000\n" + LOAD,
        NoSpaceError,
        "245000",
        "npu-smi",
    ),
    (
        "[-1][ACL: general failure] ",
        "[ERROR] acl execute failed:507011",
        DeviceLostError,
        "507011 model execution failed",
        "batch size",
    ),
    (
        "[-1][ACL: general failure] ",
        "execute model failed, modelId is 1",
        DeviceLostError,
        "failed while it ran",
        "dmesg",
    ),
    (
        "[-1][ACL: general failure] ",
        "[ERROR] acl execute failed:507015",
        DeviceLostError,
        "exception of the AI core",
        "dmesg",
    ),
    (
        "[-1][ACL: general failure] ",
        "[ERROR] acl execute failed:507899",
        DeviceLostError,
        "error inside the driver",
        "dmesg",
    ),
    (
        "[3011][Infer: find outputsize is zero please check outputsize is set correct] ",
        "",
        ContractViolationError,
        "unknown size",
        "static shapes",
    ),
    ("tensor is in npu. can't convert to numpy array", "", ToolError, "read on the device", "report"),
    (
        "[1][ACL: invalid parameter] ",
        "the chip differs, ret=507008\n" + LOAD,
        WrongDeviceError,
        "507008 wrong chip",
        "for this chip",
    ),
    (
        "libascendcl.so: cannot open shared object file: No such file or directory",
        "",
        ToolError,
        "library of CANN",
        "set_env.sh",
    ),
    ("RuntimeError: [107002][Error code unknown] ", "[ERROR] context is null", ToolError, "another thread", "report"),
]


@pytest.mark.parametrize(("message", "native", "kind", "meaning", "remedy"), SITUATIONS)
def test_every_situation_names_its_cause_and_what_to_do(message, native, kind, meaning, remedy):
    error = explain(message, native)
    assert type(error) is kind
    assert meaning in error.found
    assert message.strip() in error.found
    assert remedy in error.remedy
    for line in native.splitlines():
        assert line in error.found


@pytest.mark.parametrize("code", ACL_CODES)
def test_every_code_is_named(code):
    assert f"{code} {ACL_CODES[code]}" in explain(f"[{code}][Error code unknown] ", "").found


# A process id, the microseconds of a time, a size and a longer number.
@pytest.mark.parametrize(
    "line",
    ["EE4001: [PID: 507899] 1", "2024-05-10 10:20:30.507899", "size:3.245000", "in size:1070012", "retCode=0x507033"],
)
def test_digits_that_are_no_code_mean_nothing(line):
    error = explain("[-1][ACL: general failure] ", f"[ERROR] {line}")
    assert type(error) is ToolError
    assert error.found.startswith("the runtime failed: [-1][ACL")


def test_the_code_of_a_cause_outweighs_the_call_that_failed():
    text = "runtime result = 507033.\n[WARN] Check failed:processModel->LoadModelFromFile(modelPath), ret:1"
    error = explain("[1][ACL: invalid parameter] ", text)
    assert type(error) is DeviceLostError
    assert error.found.startswith("the device cannot be set up (507033 device set-up failed): ")


def test_what_nobody_foresaw_is_shown():
    error = explain("ValueError: odd", "line 1\nline 2")
    assert type(error) is ToolError
    assert error.found == "the runtime failed: ValueError: odd\n    line 1\n    line 2"


def test_the_last_lines_are_shown_and_progress_counts_as_lines():
    text = "".join(f"\rloop inference exec: ({n}/20)" for n in range(20)) + "\n" + "x" * 500
    lines = last_lines(text).splitlines()[1:]
    assert len(lines) == 8
    assert lines[-2].strip() == "loop inference exec: (19/20)"
    assert len(lines[-1]) < 220
    assert last_lines("") == ""


# -- what the runtime itself says --------------------------------------------------------------------------------------

# Provokes each situation in turn; gives what Python raised and what native code printed.
SCRIPT = """
import ctypes, json, os, sys, threading
folder, report = sys.argv[1:]
log = os.open(folder + "/native", os.O_RDWR | os.O_CREAT)
os.dup2(log, 1)
import aclruntime
import numpy as np
good, broken, writable = (folder + "/" + name for name in ("good.om", "broken.om", "writable.om"))
batch = np.zeros((2, 3, 4, 4), np.float32)

def options(**fields):
    found = aclruntime.session_options()
    for name, value in fields.items():
        setattr(found, name, value)
    return found

def open_(path=good, device=0, **fields):
    return aclruntime.InferenceSession(path, device, options(**fields))

session = open_()
names = [desc.name for desc in session.get_outputs()]
tensor = aclruntime.Tensor

def elsewhere():
    failures = []
    def work():
        try:
            session.run(names, [tensor(batch)])
        except RuntimeError as error:
            failures.append(error)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for error in failures:
        raise error

situations = {
    "missing": lambda: open_(folder + "/nowhere.om"),
    "broken": lambda: open_(broken),
    "writable": lambda: open_(writable),
    "configuration": lambda: open_(acl_json_path=folder + "/nowhere.json"),
    "loop": lambda: open_(loop=0),
    "log level": lambda: open_(log_level=5),
    "device 9": lambda: open_(device=9),
    "device 300": lambda: open_(device=300),
    "tensor to device 9": lambda: tensor(batch).to_device(9),
    "size": lambda: session.run(names, [tensor(batch[:1].copy())]),
    "number": lambda: session.run(names, [tensor(batch)] * 2),
    "output": lambda: session.run(["nothing"], [tensor(batch)]),
    "on device": lambda: np.array(session.run(names, [tensor(batch)])[0]),
    "thread": elsewhere,
}
said = {}
for name, provoke in situations.items():
    os.ftruncate(log, 0)
    os.lseek(log, 0, os.SEEK_SET)
    try:
        provoke()
    except RuntimeError as error:
        ctypes.CDLL(None).fflush(None)
        said[name] = [str(error), os.pread(log, 65536, 0).decode()]
json.dump(said, open(report, "w"))
"""
#: Situation, generations that refuse it, error, its meaning and what to do.
REFUSED = [
    ("missing", "V1 V2", ToolError, "it is damaged", "compile it for this chip"),
    ("missing", "V3", ToolError, "refuses the path of the model", "set TMPDIR"),
    ("broken", "V1 V2 V3", ToolError, "it is damaged, was compiled for another chip, or", "compile it for this chip"),
    ("writable", "V3", ToolError, "refuses the path of the model", "not writable for others"),
    ("configuration", "V3", ToolError, "refuses the path of its configuration", "acl_json_path"),
    ("loop", "V3", ToolError, "a loop count outside 1 to 100000", "report"),
    ("log level", "V3", ToolError, "a log level outside 1 to 4", "report"),
    ("device 9", "V1 V2 V3", NoDeviceError, "no device of this id (107001 invalid device id)", "--device-id"),
    ("device 300", "V1 V2", NoDeviceError, "no device of this id", "--device-id"),
    ("device 300", "V3", NoDeviceError, "a device id above 255", "--device-id"),
    ("tensor to device 9", "V1 V2 V3", NoDeviceError, "no device of this id", "ASCEND_RT_VISIBLE_DEVICES"),
    ("size", "V1 V2 V3", ContractViolationError, "takes an input of another size", "for this batch size"),
    ("number", "V1 V2 V3", ContractViolationError, "takes another number of inputs", "own ONNX"),
    ("output", "V1 V2 V3", ToolError, "an output of this name is unknown", "report"),
    ("on device", "V1 V2 V3", ToolError, "a tensor was read on the device", "report"),
    ("thread", "V1 V2", ToolError, "used from another thread", "report"),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    found = {}
    for generation in ("V1", "V2", "V3"):
        folder = tmp_path_factory.mktemp(generation)
        host = stand_in.host(folder / "host", f"sim:310P3,{generation.lower()}")
        stand_in.model(folder / "good.om").chmod(0o600)
        stand_in.model(folder / "writable.om").chmod(0o666)
        (folder / "broken.om").write_text("nothing")
        (folder / "broken.om").chmod(0o600)
        command = [sys.executable, "-c", SCRIPT, str(folder), str(folder / "report.json")]
        subprocess.run(command, env=host.env, check=True, timeout=60)
        found[generation] = json.loads((folder / "report.json").read_text())
    return found


@pytest.mark.parametrize(
    ("situation", "generation", "kind", "meaning", "remedy"),
    [(situation, name, *rest) for situation, names, *rest in REFUSED for name in names.split()],
)
def test_what_the_runtime_refuses_is_explained(said, situation, generation, kind, meaning, remedy):
    error = explain(*said[generation][situation])
    assert type(error) is kind, error
    assert meaning in error.found
    assert remedy in error.remedy


def test_every_refusal_of_the_runtime_is_listed(said):
    listed = {name: {row[0] for row in REFUSED if name in row[1]} for name in said}
    assert {name: set(found) for name, found in said.items()} == listed
