"""What a compiled model is: read by the compiler itself, without a device."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.ascend.atc_errors import explain
from support.ascend.host import AscendHost
from support.ascend.processes import run_tool
from support.backends.base import TensorInfo
from support.errors import SuiteError, ToolError

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
HALF = frozenset({"DT_FLOAT16", "DT_BF16"})
FRACTIONAL = HALF | {"DT_FLOAT"}
MODEL_REMEDY = (
    "check that --om=PATH is a whole model, compiled by this CANN or an older one, and that its path has only letters, "
    "digits, _ - and ."
)
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
    fp32_operators, half_operators : mapping of str to int
        How many of each type compute in float32, and how many in half precision or partly so; the rest has no numbers
        of either kind, or does not tell.
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
    half_operators: Mapping[str, int]
    dynamic: bool
    aipp: bool


def parse_om_json(text: str) -> OmFacts:
    """
    Read the JSON that ``atc --mode=1`` makes of a compiled model.

    Its layout is that of the compiler's model definition: attributes as key and value, graphs of operators, inputs as
    operators of type Data, outputs as what the operator of type NetOutput reads. A graph that an operator of another
    one names as its own has inputs and outputs that are none of the model's.

    Raises
    ------
    ToolError
        If it is no such JSON.
    """
    try:
        model = json.loads(text)
        attributes = {item["key"]: item["value"].get("s") for item in model.get("attr", []) if "value" in item}
        return _facts(attributes, model["graph"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise ToolError(
            f"atc --mode=1 wrote something else than a model: {type(error).__name__}: {error}",
            remedy="look whether this CANN is newer than the suite: it may describe models in another way",
        ) from error


def _facts(attributes: Mapping[str, str | None], graphs: Sequence[Mapping[str, Any]]) -> OmFacts:
    operators = [operator for graph in graphs for operator in graph["op"]]
    inner = {name for operator in operators for name in operator.get("subgraph_name", [])}
    outer = [operator for graph in graphs if graph.get("name") not in inner for operator in graph["op"]]
    computing = [operator for operator in operators if operator["type"] not in FRAME]
    command = attributes.get("atc_cmdline")
    options = dict(_options(command or ""))
    inputs, outputs = tuple(_inputs(outer)), tuple(_outputs(outer))
    if not inputs or not outputs:
        raise ValueError("it has no Data or no NetOutput")
    return OmFacts(
        inputs=inputs,
        outputs=outputs,
        soc_version=attributes.get("soc_version") or options.get("soc_version"),
        precision_mode=options.get("precision_mode") or options.get("precision_mode_v2"),
        atc_version=attributes.get("atc_version"),
        command=command,
        operators=Counter(operator["type"] for operator in computing),
        fp32_operators=Counter(operator["type"] for operator in computing if _computes_in(operator) == {"DT_FLOAT"}),
        half_operators=Counter(operator["type"] for operator in computing if _computes_in(operator) & HALF),
        dynamic=any(name.startswith("dynamic_") for name in options) or any(-1 in tensor.shape for tensor in inputs),
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
            yield _tensor(operator["name"], operator["input_desc"][0])


def _outputs(operators: list[Mapping[str, Any]]) -> Iterator[TensorInfo]:
    ends = [operator for operator in operators if operator["type"] == "NetOutput"]
    for end in ends[:1]:
        yield from (_tensor(str(place), desc) for place, desc in enumerate(end["input_desc"]))


def _tensor(name: str, desc: Mapping[str, Any]) -> TensorInfo:
    shape = tuple(int(side) for side in desc.get("shape", {}).get("dim", []))
    return TensorInfo(name, shape, DTYPES.get(desc["dtype"], str(desc["dtype"])))


def _computes_in(operator: Mapping[str, Any]) -> set[str]:
    """Kinds of fractional numbers an operator reads and writes; whole numbers are axes and indices."""
    descs = [*operator.get("input_desc", []), *operator.get("output_desc", [])]
    return {desc["dtype"] for desc in descs if desc.get("dtype") in FRACTIONAL}


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
        env = {**host.env, "ASCEND_PROCESS_LOG_PATH": f"{folder}/plog"}
        done = run_tool(command, env=env, timeout=timeout, cwd=Path(folder))
        if done.status != 0 or not path.is_file():
            raise _unreadable(om, explain(done.status, done.output))
        return parse_om_json(path.read_text(encoding="utf-8", errors="replace"))


def _unreadable(om: Path, error: SuiteError) -> ToolError:
    # What helps a compilation does not help a model that exists.
    remedy = error.remedy if isinstance(error, ToolError) else MODEL_REMEDY
    return ToolError(f"{om} cannot be read by atc: {error.found}", remedy=remedy)
