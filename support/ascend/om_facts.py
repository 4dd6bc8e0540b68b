"""What a compiled model is: read by the compiler itself, without a device."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.ascend.atc_errors import explain
from support.ascend.host import AscendHost
from support.ascend.processes import run_tool
from support.backends.base import TensorInfo
from support.errors import ToolError

__all__ = ["OmFacts", "parse_om_json", "read_om"]

DTYPES = {
    "DT_FLOAT": "float32",
    "DT_FLOAT16": "float16",
    "DT_UINT8": "uint8",
    "DT_INT8": "int8",
    "DT_INT32": "int32",
    "DT_INT64": "int64",
    "DT_BOOL": "bool",
}
#: Operators that are no computation.
FRAME = ("Data", "NetOutput", "Const", "Constant")


@dataclass(frozen=True)
class OmFacts:
    """
    Everything the compiler tells about a model; None or empty where it does not.

    Parameters
    ----------
    inputs, outputs : tuple of TensorInfo
        Shapes have -1 for a dynamic axis.
    soc_version, precision_mode, atc_version, command : str or None
        Of its compilation.
    operators : mapping of str to int
        How many operators of each type it has.
    fp32_operators : mapping of str to int
        How many of each type read and write float32.
    dynamic, aipp : bool
        Whether it was compiled for several shapes, and whether it takes raw pixels.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    soc_version: str | None
    precision_mode: str | None
    atc_version: str | None
    command: str | None
    operators: Mapping[str, int]
    fp32_operators: Mapping[str, int]
    dynamic: bool
    aipp: bool


def parse_om_json(text: str) -> OmFacts:
    """
    Read the JSON that ``atc --mode=1`` makes of a compiled model.

    Its layout is that of the compiler's model definition: attributes as key and value, graphs of operators, inputs as
    operators of type Data, outputs as what the operator of type NetOutput reads.

    Raises
    ------
    ToolError
        If it is no such JSON.
    """
    try:
        model = json.loads(text)
        attributes = {item["key"]: item["value"].get("s") for item in model.get("attr", []) if "value" in item}
        operators = [operator for graph in model["graph"] for operator in graph["op"]]
        return _facts(attributes, operators)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ToolError(
            f"atc --mode=1 wrote something else than a model: {type(error).__name__}: {error}",
            remedy="this version of CANN may write another layout; the model is then not verified",
        ) from error


def _facts(attributes: Mapping[str, str | None], operators: list[Mapping[str, Any]]) -> OmFacts:
    command = attributes.get("atc_cmdline")
    options = dict(_options(command or ""))
    computing = [operator for operator in operators if operator["type"] not in FRAME]
    return OmFacts(
        inputs=tuple(_inputs(operators)),
        outputs=tuple(_outputs(operators)),
        soc_version=attributes.get("soc_version") or options.get("soc_version"),
        precision_mode=options.get("precision_mode"),
        atc_version=attributes.get("atc_version"),
        command=command,
        operators=Counter(operator["type"] for operator in computing),
        fp32_operators=Counter(operator["type"] for operator in computing if _is_fp32(operator)),
        dynamic=any(name.startswith("dynamic_") for name in options),
        aipp="insert_op_conf" in options or any(operator["type"].lower() == "aipp" for operator in operators),
    )


def _options(command: str) -> Iterator[tuple[str, str]]:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    for place, word in enumerate(words):
        match = re.fullmatch(r"--(\w+)(?:=(.*))?", word, re.DOTALL)
        if match:
            yield match[1], match[2] if match[2] is not None else "".join(words[place + 1 : place + 2])


def _inputs(operators: list[Mapping[str, Any]]) -> Iterator[TensorInfo]:
    for operator in operators:
        if operator["type"] == "Data":
            descs = operator.get("output_desc") or operator["input_desc"]
            yield _tensor(operator["name"], descs[0])


def _outputs(operators: list[Mapping[str, Any]]) -> Iterator[TensorInfo]:
    ends = [operator for operator in operators if operator["type"] == "NetOutput"]
    for operator in ends[:1]:
        yield from (_tensor(str(place), desc) for place, desc in enumerate(operator["input_desc"]))


def _tensor(name: str, desc: Mapping[str, Any]) -> TensorInfo:
    shape = tuple(int(side) for side in desc.get("shape", {}).get("dim", []))
    return TensorInfo(name, shape, DTYPES.get(desc["dtype"], str(desc["dtype"])))


def _is_fp32(operator: Mapping[str, Any]) -> bool:
    descs = [*operator.get("input_desc", []), *operator.get("output_desc", [])]
    return bool(descs) and all(desc.get("dtype") == "DT_FLOAT" for desc in descs)


def read_om(host: AscendHost, om: Path, *, timeout: float) -> OmFacts:
    """
    Let the compiler tell what a model is.

    Parameters
    ----------
    host : AscendHost
        Where atc is.
    om : Path
        Compiled model.
    timeout : float
        Seconds.

    Raises
    ------
    ToolError
        If atc cannot read it.
    """
    with tempfile.TemporaryDirectory(prefix="om-facts-") as folder:
        path = Path(folder) / "om.json"
        command = [str(host.tool("atc")), "--mode=1", f"--om={om.resolve()}", f"--json={path}"]
        done = run_tool(command, env=host.env, timeout=timeout, cwd=Path(folder))
        if done.status != 0 or not path.is_file():
            error = explain(done.status, done.output, "this message")
            raise ToolError(f"{om.name} cannot be read by atc: {error.found}", remedy=error.remedy)
        return parse_om_json(path.read_text(encoding="utf-8", errors="replace"))
