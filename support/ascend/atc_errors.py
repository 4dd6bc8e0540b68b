"""What a failed ``atc`` means, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from support.errors import BuildFailedError, SuiteError, ToolError

__all__ = ["ATC_CODES", "explain"]

CODE = re.compile(r"\b([EW][A-Z0-9]\d{4})\b")
#: "E10001: …" of CANN 5, "E10007: [PID: …] …" of CANN 8, and "[PID: …] … Title(EZ3002): …" of later ones.
LABEL = re.compile(
    r"^\s*(?:\[PID: \d+\]\s*)?\S*?\s*(?:\w[\w ]*\()?[EW][A-Z0-9]\d{4}\)?:\s*(?:\[PID: \d+\]\s*\S+\s*)?", re.M
)
SHOWN = 300

#: Remedy by error code; the code of older versions of the same error beside it.
ATC_CODES: Mapping[str, str] = MappingProxyType(
    {
        "E10001": "correct the value it names in the spec's [atc]; --modify_mixlist needs a mixed precision mode",
        "E10002": "the shape must be name:n,c,h,w; it is read from the ONNX, so look at its input",
        "E10003": "check that the file it names exists and that its path has only letters, digits, _ - and .",
        "E10004": "a value in the spec's [atc] is empty",
        "E10007": "framework is missing in the spec's [atc]; 5 is ONNX",
        "E10010": "log in the spec's [atc] must be debug, info, warning, error or null",
        "E10011": "the ONNX has another shape than was asked for: export it for this batch size",
        "E10016": "the input has another name than the ONNX says: was another file compiled?",
        "E10022": "--artifacts=DIR leads to a path without a file name",
        "E10041": "the ONNX cannot be read: delete the artifact and build it anew, or check --onnx=PATH",
        "E10047": "two options of the spec's [atc] exclude each other",
        "E10049": "the ONNX has an input of another number of dimensions",
        "E10052": "the AIPP configuration is wrong; the guide uses none",
        "E10054": "an option atc requires is missing in the spec's [atc]",
        "E13005": "a file it reads is damaged",
        "E13015": "a file it reads is too large or empty",
        "E13023": "a file it reads cannot be parsed",
        "E16002": "an operator has no parser in this CANN: export with opset 11, or use a newer CANN",
        "E19010": "an operator has no parser in this CANN: export with opset 11, or use a newer CANN",
        "E19999": "an error inside the compiler: read the log",
        "E20001": "an operator could not be compiled: read the log, check the opp package of this chip",
        "E20003": "modify_mixlist in the spec's [atc] contradicts itself or has an unknown key",
        "E20101": "this CANN does not know the chip: install its ops package, or a newer CANN",
        "E21001": "the list for --modify_mixlist cannot be opened: check --artifacts=DIR",
        "E21002": "the list for --modify_mixlist cannot be read: check modify_mixlist in the spec's [atc]",
        "E40000": "a Python module of the operator compiler is missing",
        "EC0010": "a Python module of the operator compiler is missing",
        "EZ3002": "this chip does not support an operator: read which",
        "EZ3003": "there is no kernel for an operator: install the ops package of this chip",
        "EZ9010": "an error inside the compiler: read the log",
        "EZ9999": "an error inside the compiler: read the log",
    }
)
NOT_SOURCED = (
    "source /usr/local/Ascend/ascend-toolkit/set_env.sh (CANN 8.5 and later: /usr/local/Ascend/cann/set_env.sh)"
)
MODULES = (
    "put the Python that CANN was installed for first on PATH, with attrs, numpy (below 2 for CANN before 8), "
    "decorator, sympy, cffi, pyyaml, psutil, protobuf and scipy; a virtual environment on PATH may hide it"
)
#: Trouble with the host rather than with the model, as (text, remedy).
HOST: tuple[tuple[str, str], ...] = (
    ("--host_env_os] is invalid", f"the environment of CANN is set in part: {NOT_SOURCED}"),
    (
        "libascend_hal.so",
        "this host has no driver: add $ASCEND_TOOLKIT_HOME/$(uname -m)-linux/devlib to LD_LIBRARY_PATH, for atc alone",
    ),
    ("error while loading shared libraries", NOT_SOURCED),
    ("opp version", "opp and compiler are of different versions: install both from one CANN, then compile again"),
    ("EC0010", MODULES),
    ("E40000", MODULES),
    ("No module named", MODULES),
)


def explain(status: int, output: str, log: str) -> SuiteError:
    """
    Say why a compilation failed.

    Parameters
    ----------
    status : int
        Exit status; negative for a signal.
    output : str
        All that atc printed.
    log : str
        Where it is kept.

    Returns
    -------
    error : SuiteError
        ToolError if the host is not fit for compiling; BuildFailedError if this model could not be compiled.
    """
    if status == 127:
        return ToolError("atc cannot be started (127)", remedy=NOT_SOURCED)
    code = next((found for found in CODE.findall(output) if found.startswith("E")), "")
    found = f"atc ended with {status}: {_described(code, output)}; its output is in {log}"
    for text, remedy in HOST:
        if text in output:
            return ToolError(found, remedy=remedy)
    if status < 0:
        return ToolError(found, remedy=f"it was killed by signal {-status}: often the host ran out of memory")
    return BuildFailedError(found, remedy=ATC_CODES.get(code, "read its output"))


def _described(code: str, output: str) -> str:
    """Code, text, cause and solution, on one line."""
    if not code:
        return output.strip()[-SHOWN:] or "it printed nothing"
    lines = output.splitlines()
    place = next(place for place, line in enumerate(lines) if code in line)
    text = LABEL.sub("", lines[place]).strip()
    hints = [line.strip() for line in lines[place + 1 :] if line.strip().startswith(("Possible Cause:", "Solution:"))]
    return " ".join([f"{code}: {text[:SHOWN]}", *(hint[:SHOWN] for hint in hints)])
