"""What a message of the native runtime means, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from support.errors import (
    ContractViolationError,
    DeviceLostError,
    NoDeviceError,
    NoSpaceError,
    SuiteError,
    ToolError,
    WrongDeviceError,
)

__all__ = ["ACL_CODES", "explain", "last_lines"]

#: Lines of native output an error quotes.
LINES = 8
LINE_LENGTH = 200

#: Codes of acl worth a name; source: the toolkit's headers of acl, runtime and ge.
ACL_CODES: Mapping[str, str] = MappingProxyType(
    {
        "107001": "invalid device id",
        "107002": "the context is null",
        "145000": "invalid parameter",
        "145002": "invalid model path",
        "145006": "wrong size of data",
        "207001": "memory allocation failed",
        "245000": "memory allocation failed",
        "507008": "wrong chip (SoC version)",
        "507011": "model execution failed",
        "507015": "exception of the AI core",
        "507033": "device set-up failed",
        "507899": "error inside the driver",
        "545001": "loading the model failed",
    }
)
#: Six digits that are neither a process id nor part of a number or of a time.
CODE = re.compile(r"(?<!PID: )(?<![\w.])\d{6}(?!\w|\.\d)")
MEMORY = "another job may hold the memory: npu-smi info; or use a smaller batch size"
DRIVER = "check driver, firmware and hardware: npu-smi info -t health, dmesg; restart the device"
INPUT = "compile the network's own ONNX, for this batch size, with float32 input and without AIPP"
VISIBLE = "check --device-id and ASCEND_RT_VISIBLE_DEVICES: ids are logic ids, which npu-smi info shows as Device"

#: Messages by a text or a code they contain, first match: (text or code, error, meaning, remedy).
RULES: tuple[tuple[str, type[SuiteError], str, str], ...] = (
    (
        "please check model path",
        ToolError,
        "the runtime refuses the path of the model",
        "it must be no soft link, not writable for others, end in .om, and have only A-Z a-z 0-9 _ . / - in at most 32 "
        "folders: set TMPDIR to such a place",
    ),
    (
        "please check acl json path",
        ToolError,
        "the runtime refuses the path of its configuration",
        "unset acl_json_path",
    ),
    ("loop num out of range", ToolError, "a loop count outside 1 to 100000", "please report it: the suite uses 1"),
    ("log level out of range", ToolError, "a log level outside 1 to 4", "please report it: the suite uses 2"),
    ("device id is out of range", NoDeviceError, "a device id above 255", VISIBLE),
    ("107001", NoDeviceError, "no device of this id", VISIBLE),
    ("deviceId(", NoDeviceError, "no device of this id", VISIBLE),
    ("507033", DeviceLostError, "the device cannot be set up", DRIVER),
    ("SetDevice failed", DeviceLostError, "the device cannot be opened", DRIVER),
    ("create context failed", DeviceLostError, "the device cannot be opened", DRIVER),
    ("malloc device memory", NoSpaceError, "the device has too little memory", MEMORY),
    ("[2][ACL: memory", NoSpaceError, "the device has too little memory", MEMORY),
    ("207001", NoSpaceError, "the device has too little memory", MEMORY),
    ("245000", NoSpaceError, "the device has too little memory", MEMORY),
    ("507008", WrongDeviceError, "the model was compiled for another chip", "compile it for this chip"),
    (
        "LoadModelFromFile",
        ToolError,
        "the model cannot be loaded: it is damaged, was compiled for another chip, or does not fit into memory",
        "compile it for this chip with this CANN; see what the runtime said",
    ),
    (
        "[1][ACL: invalid parameter]",
        ToolError,
        "the model cannot be loaded: it is missing, damaged or of another chip",
        "compile it for this chip with this CANN; see what the runtime said",
    ),
    ("needsize", ContractViolationError, "the model takes an input of another size", INPUT),
    ("intensors in:", ContractViolationError, "the model takes another number of inputs", INPUT),
    ("[3][ACL: runtime failure]", ContractViolationError, "the model takes another number of inputs", INPUT),
    ("outnames ", ToolError, "an output of this name is unknown", "please report it: names are read from the model"),
    ("find outputsize is zero", ContractViolationError, "an output of unknown size", "compile it with static shapes"),
    ("context is null", ToolError, "the session was used from another thread", "please report it"),
    ("507011", DeviceLostError, "the model failed while it ran", f"often a batch size that is too large; {MEMORY}"),
    ("507015", DeviceLostError, "an exception of the AI core", DRIVER),
    ("507899", DeviceLostError, "the driver failed while the model ran", DRIVER),
    ("acl execute failed", DeviceLostError, "the model failed while it ran", DRIVER),
    ("execute model failed", DeviceLostError, "the model failed while it ran", DRIVER),
    ("tensor is in npu", ToolError, "a tensor was read on the device", "please report it"),
    ("cannot open shared object", ToolError, "a library of CANN is missing", "source set_env.sh of the toolkit"),
)


def explain(message: str, native: str) -> SuiteError:
    """
    Turn what the runtime raised into an error a user can act on.

    Parameters
    ----------
    message : str
        Text of the Python exception, which is short.
    native : str
        What native code printed until then; the details are there.
    """
    both = f"{message}\n{native}"
    codes = dict.fromkeys(CODE.findall(both))
    rule = next((rule for rule in RULES if rule[0] in (codes if rule[0].isdecimal() else both)), None)
    kind, meaning, remedy = rule[1:] if rule else (ToolError, "the runtime failed", "see what it said")
    known = [f"{code} {ACL_CODES[code]}" for code in codes if code in ACL_CODES]
    named = f" ({', '.join(known)})" if known else ""
    return kind(f"{meaning}{named}: {message.strip() or 'no message'}{last_lines(native)}", remedy=remedy)


def last_lines(native: str) -> str:
    """Last lines of native output, as the end of a message; progress that overwrites itself counts as lines."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", native) if line.strip()]
    return "".join(f"\n    {line[:LINE_LENGTH]}" for line in lines[-LINES:])
