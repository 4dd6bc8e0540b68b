"""What a failed ``atc`` means, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice, takewhile
from types import MappingProxyType

from support.errors import BuildFailedError, SuiteError, ToolError

__all__ = ["ATC_CODES", "explain"]

CODE = re.compile(r"\b(E[A-Z0-9]\d{4})\b")
#: "E10001: …" of CANN 5, "E10007: [PID: …] <time> …" of CANN 8, and "[PID: …] <time> <Title>(EZ3002): …" of later ones.
LABEL = re.compile(
    r"^\s*(?:\[PID: \d+\]\s+\S+\s+[^()]*\()?[EW][A-Z0-9]\d{4}\)?:\s*(?:\[PID: \d+\]\s+\S+\s+)?", re.ASCII
)
#: How much of an error block a message shows: cause and solution are in its first lines.
LINES, CHARACTERS = 6, 300
#: A process that a signal ended, as a shell script passes its status on.
SHELL_SIGNALS = range(129, 160)

INNER = "read the plog files beside its output, and report it to the vendor; log = debug in the spec's [atc] tells more"
#: Remedy by error code; E19010 is an older number of E16002.
ATC_CODES: Mapping[str, str] = MappingProxyType(
    {
        "E10001": "correct the option it names in the spec's [atc]; modify_mixlist needs a mixed precision_mode",
        "E10002": "look at the input of the ONNX, from which name:n,c,h,w is read; its name may hold a ':' or ';'",
        "E10003": "check that the file it names exists, and move it where the path has only letters, digits, _ - and .",
        "E10004": "fill in the empty option in the spec's [atc]",
        "E10007": "set framework in the spec's [atc]; 5 is ONNX",
        "E10010": "set log in the spec's [atc] to debug, info, warning, error or null",
        "E10011": "export the ONNX for this batch size: its shape must be positive and the one asked for",
        "E10016": "compile the file whose input was read: build the artifact anew, or check --onnx=PATH",
        "E10022": "give an --artifacts=DIR that is a folder",
        "E10041": "delete the ONNX artifact so that it is built anew, or check --onnx=PATH; framework 5 is ONNX",
        "E10047": "remove one of the two options from the spec's [atc]",
        "E10049": "export the ONNX with an input of four dimensions",
        "E10052": "compile without AIPP, as the guide does",
        "E10054": "add the option it names to the spec's [atc]",
        "E13005": "delete the ONNX artifact so that it is built anew; check the protobuf of CANN's Python",
        "E13015": "look at the file it names, which is empty or too large: a full disk cuts files off",
        "E13023": "check --onnx=PATH: the compiled network would be larger than the compiler can write",
        "E16002": "export the ONNX with opset 11, or install a newer CANN",
        "E19010": "export the ONNX with opset 11, or install a newer CANN",
        "E19999": INNER,
        "E20001": "install the ops package of this chip and CANN again; the plog files have the operator's own error",
        "E20003": "correct modify_mixlist in the spec's [atc]: an operator in one list only, under to-add or to-remove",
        "E20101": "install the ops package of this chip, or a CANN that knows the chip",
        "E21001": "check that --artifacts=DIR can be read and written: the mixed-precision list is there",
        "E21002": "check the disk of --artifacts=DIR: the mixed-precision list there is no JSON any more",
        "EZ3002": "export the ONNX without the operator it names, or install a CANN that supports it on this chip",
        "EZ3003": "install the ops package of this chip, which has the operator's kernel",
        "EZ9010": INNER,
        "EZ9999": INNER,
    }
)
NOT_SOURCED = (
    "source /usr/local/Ascend/ascend-toolkit/set_env.sh (CANN 8.5 and later: /usr/local/Ascend/cann/set_env.sh)"
)
MODULES = (
    "put the Python that CANN was installed for first on PATH (a virtual environment hides it), with attrs, numpy "
    "(below 2 for older CANN), decorator, sympy, cffi, pyyaml, psutil, protobuf and scipy"
)
#: Trouble with the host rather than with the model: what the output has, and the remedy.
HOST: tuple[tuple[str, str], ...] = (
    ("host_env_os", f"the environment of CANN is set in part: {NOT_SOURCED}"),
    (
        "libascend_hal.so",
        "this host has no driver: add $ASCEND_TOOLKIT_HOME/$(uname -m)-linux/devlib to LD_LIBRARY_PATH, for atc alone",
    ),
    ("error while loading shared libraries", NOT_SOURCED),
    ("opp version", "install the opp package and the compiler from one CANN, then compile again"),
    ("EC0010", MODULES),
    ("E40000", MODULES),
    ("No module named", MODULES),
)
MISSING_MODULE = re.compile(r"No module named '?([\w.]+)")


def explain(status: int, output: str, log: str = "") -> SuiteError:
    """
    Say why ``atc`` failed.

    Parameters
    ----------
    status : int
        Exit status; negative for a signal.
    output : str
        All that atc printed.
    log : str, optional
        Where the output is kept.

    Returns
    -------
    error : SuiteError
        ToolError if the host is not fit for compiling; BuildFailedError if this model could not be compiled.

    Examples
    --------
    >>> print(explain(255, "E10010: Value [all] for parameter [--log] is invalid."))
    atc ended with 255: E10010: Value [all] for parameter [--log] is invalid.
      what to do: set log in the spec's [atc] to debug, info, warning, error or null
    """
    match = CODE.search(output)
    code = match[0] if match else ""
    found = f"atc ended with {status}: {_described(code, output)}"
    found += f"; its output is in {log}" if log else ""
    remedy = _host_remedy(status, code, output)
    if remedy:
        return ToolError(found, remedy=remedy)
    return BuildFailedError(found, remedy=ATC_CODES.get(code, "read its output"))


def _described(code: str, output: str) -> str:
    """Code, cause and solution, on one line."""
    missing = MISSING_MODULE.search(output)
    cause = (
        f"{code}: {' '.join(_block(code, output))}"
        if code
        else " ".join(output.split())[-CHARACTERS:] or "it printed nothing"
    )
    # The traceback that names the module comes before the block and may be cut off with what surrounds it.
    return f"{cause} ({missing[0]!r})" if missing and missing[0] not in cause else cause


def _block(code: str, output: str) -> Iterator[str]:
    lines = output.splitlines()
    place = next(place for place, line in enumerate(lines) if code in line)
    block = takewhile(lambda line: "TraceBack" not in line, lines[place:])
    texts = (LABEL.sub("", line).strip()[:CHARACTERS] for line in block)
    return islice((text for text in texts if text and not text.endswith(": N/A")), LINES)


def _host_remedy(status: int, code: str, output: str) -> str:
    """Remedy for a host that is not fit for compiling; empty for one that is."""
    for text, remedy in HOST:
        if text in output:
            return remedy
    # The loader of programs ends with 127 too, so its message, above, goes first.
    if status == 127:
        return f"the shell did not find the compiler: {NOT_SOURCED}"
    signal = -status if status < 0 else status - 128 if status in SHELL_SIGNALS and not code else 0
    return f"signal {signal} ended it: often the host ran out of memory (dmesg tells)" if signal else ""
