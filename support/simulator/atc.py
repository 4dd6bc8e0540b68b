"""The simulated compiler: validates its options and the graph as ``atc`` does, and stores what the device computes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.simulator.om import BrokenOmError, Om, OmTensor, read_om, write_om
from support.simulator.om_json import as_json
from support.simulator.precision import lowered_nodes

if TYPE_CHECKING:
    import onnx

__all__ = ["AtcError", "main"]

START = "ATC start working now, please wait for a moment."
SUCCESS = "ATC run success, welcome to the next use."
FAILURE = "ATC run failed, Please check the detail log, Try 'atc --help' for more information"
OPTIONS = frozenset(
    {
        *("dynamic_batch_size", "framework", "input_format", "input_shape", "insert_op_conf", "json", "log", "mode"),
        *("model", "modify_mixlist", "om", "op_select_implmode", "output", "output_type", "precision_mode"),
        "soc_version",
    }
)
PRECISION_MODES = (
    "force_fp16",
    "force_fp32",
    "cube_fp16in_fp32out",
    "allow_mix_precision",
    "allow_mix_precision_fp16",
    "allow_fp32_to_fp16",
    "must_keep_origin_dtype",
)
SOCS = frozenset(
    {
        *("Ascend310", "Ascend310P1", "Ascend310P3", "Ascend310P5", "Ascend310P7", "Ascend310B1", "Ascend310B4"),
        "Ascend910A",
    }
)
#: Modes CANN 5 does not know.
NEWER_MODES = frozenset({"allow_mix_precision_fp16", "cube_fp16in_fp32out"})
LOGS = frozenset({"debug", "info", "warning", "error", "null"})
#: Operators of ONNX the compiler has a parser for; those of the network and their near relatives.
OPERATORS = frozenset(
    {
        *("Add", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "Div"),
        *("Exp", "Flatten", "Floor", "Gather", "Gemm", "GlobalAveragePool", "Identity", "MatMul", "Max", "MaxPool"),
        *("Min", "Mul", "Pad", "Pow", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Shape", "Sigmoid"),
        *("Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "TopK", "Transpose", "Unsqueeze"),
    }
)
LISTS, CHANGES = ("black-list", "white-list", "gray-list"), ("to-add", "to-remove")
DTYPES = {"FP32": "float32", "FP16": "float16", "UINT8": "uint8", "INT8": "int8"}


class AtcError(Exception):
    """What a failed compilation prints: a code, a text, and perhaps a solution."""

    def __init__(self, code: str, text: str, *, solution: str = "") -> None:
        super().__init__(code, text)
        self.code, self.text, self.solution = code, text, solution


def _invalid(value: str, option: str, reason: str) -> AtcError:
    return AtcError("E10001", f"Value [{value}] for parameter [--{option}] is invalid. Reason: {reason}")


def main(arguments: Sequence[str], host: Mapping[str, Any] | None = None) -> int:
    """
    Run as ``atc``; everything is printed on standard output.

    Parameters
    ----------
    arguments : sequence of str
        Of the command line, each ``--name=value``.
    host : mapping, optional
        Description of the simulated host; the one ``ASCEND_SIMULATED_HOST`` leads to by default.

    Returns
    -------
    status : int
        0 if it was successful, 1 for an unknown option, 255 for any other failure.
    """
    host = host or _host()
    if "--help" in arguments:
        _print("usage: atc.bin <args>\n" + "\n".join(f"  --{name}" for name in sorted(OPTIONS)))
        return 0
    unknown = [argument for argument in arguments if not _known(argument)]
    if unknown:
        # The parser of the command line ends the process before the compiler starts: no code, no verdict.
        _print(f"ERROR: unknown command line flag '{unknown[0].partition('=')[0].lstrip('-')}'")
        return 1
    _print(START)
    try:
        _run(dict(_pair(argument) for argument in arguments), arguments, host)
    except AtcError as error:
        _print(FAILURE, _block(error, host))
        return 255
    _print(SUCCESS)
    return 0


def _host() -> Mapping[str, Any]:
    folder = Path(os.environ["ASCEND_SIMULATED_HOST"])
    host: Mapping[str, Any] = json.loads((folder / "host.json").read_text(encoding="utf-8"))
    return host


def _print(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _block(error: AtcError, host: Mapping[str, Any]) -> str:
    """Print an error in the form of the host's generation of tools."""
    heads = {
        "V1": f"{error.code}: {error.text}",
        "V2": f"{error.code}: [PID: {os.getpid()}] 2025-03-18-09:02:18.501.341 {error.text}",
        "V3": f"[PID: {os.getpid()}] 2026-03-18-09:02:18.501.341 Invalid argument({error.code}): {error.text}",
    }
    lines = [heads[host["generation"]]]
    lines += [f"        Solution: {error.solution}"] if error.solution else []
    return "\n".join([*lines, "        TraceBack (most recent call last):", "        Generate model failed."])


def _pair(argument: str) -> tuple[str, str]:
    name, _, value = argument.removeprefix("--").partition("=")
    return name, value


def _known(argument: str) -> bool:
    return argument.startswith("--") and "=" in argument and _pair(argument)[0] in OPTIONS


def _run(options: Mapping[str, str], arguments: Sequence[str], host: Mapping[str, Any]) -> None:
    if options.get("mode", "0") == "1":
        _to_json(options)
        return
    if options.get("mode", "0") != "0":
        raise _invalid(options["mode"], "mode", "only 0 and 1 are simulated")
    om = _compiled(options, arguments, host)
    output = Path(_required(options, "output"))
    if not output.name or str(options["output"]).endswith("/"):
        raise AtcError("E10022", f"Path [{options['output']}] for parameter [--output] does not include file name.")
    try:
        write_om(output.with_name(f"{output.name}.om"), om)
    except OSError as error:
        raise AtcError("E10003", f"Value [{output}] for parameter [--output] is invalid. Reason: {error}") from error


def _required(options: Mapping[str, str], name: str) -> str:
    if name not in options:
        raise AtcError("E10054", f"The requied parameter [--{name}] for ATC is empty.")
    if not options[name]:
        raise AtcError("E10004", f"Value for parameter [--{name}] is empty.")
    return options[name]


def _compiled(options: Mapping[str, str], arguments: Sequence[str], host: Mapping[str, Any]) -> Om:
    model = _model(options)
    if _required(options, "soc_version") not in SOCS:
        raise AtcError(
            "E20101",
            f"Value [{options['soc_version']}] for parameter [soc_version] is invalid. Reason: the platform "
            f"configuration file cannot be found",
        )
    if options.get("log", "null") not in LOGS:
        raise AtcError("E10010", f"Value [{options['log']}] for parameter [--log] is invalid.")
    if options.get("input_format", "NCHW") not in ("NCHW", "ND", "NCDHW"):
        raise _invalid(options["input_format"], "input_format", "it must be NCHW, ND or NCDHW")
    mode = _precision_mode(options, host)
    black = () if "mixlist-ignored" in host["faults"] else _black_list(options, mode)
    _check_operators(model, host)
    shapes = _shapes(model, options)
    if "dynamic_batch_size" not in options:
        _fix(model, shapes)
    return Om(
        inputs=tuple(_input(name, shape, options) for name, shape in shapes.items()),
        outputs=_outputs(model, options),
        soc_version=options["soc_version"],
        precision_mode=mode,
        lowered=tuple(lowered_nodes(model, mode, black)),
        gears=_gears(options),
        aipp="insert_op_conf" in options,
        command="atc.bin " + " ".join(arguments),
        version=host["cann"],
        onnx=model.SerializeToString(),
    )


def _model(options: Mapping[str, str]) -> onnx.ModelProto:
    import onnx

    if "framework" not in options:
        raise AtcError("E10007", "The value of parameter [--framework] is required")
    if options["framework"] != "5":
        raise _invalid(options["framework"], "framework", "only 5 (ONNX) is simulated")
    path = Path(_required(options, "model"))
    if not path.is_file():
        raise AtcError("E10003", f"Value [{path}] for parameter [--model] is invalid. Reason: the file does not exist")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker share no base
        raise AtcError("E10041", f"Failed to load model from [{path}]: {str(error)[:200]}") from error
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    return model


def _precision_mode(options: Mapping[str, str], host: Mapping[str, Any]) -> str:
    mode = options.get("precision_mode", "force_fp16")
    known = [name for name in PRECISION_MODES if name not in NEWER_MODES or not host["cann"].startswith("5.")]
    if mode not in known:
        raise _invalid(mode, "precision_mode", f"it must be one of {', '.join(known)}")
    if "modify_mixlist" in options and not mode.startswith("allow_mix_precision"):
        raise _invalid(options["modify_mixlist"], "modify_mixlist", "it needs a mixed precision mode")
    return mode


def _black_list(options: Mapping[str, str], mode: str) -> tuple[str, ...]:
    if "modify_mixlist" not in options:
        return ()
    path = Path(options["modify_mixlist"])
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AtcError("E21001", f"Failed to open file [{path}]: {error.strerror}") from error
    try:
        lists = json.loads(text)
    except ValueError as error:
        raise AtcError("E21002", f"Failed to read json file [{path}]: {error}") from error
    return _added(lists, path)


def _added(lists: Any, path: Path) -> tuple[str, ...]:
    if not _well_formed(lists):
        raise AtcError(
            "E20003", f"The content of file [{path}] is invalid: {', '.join(LISTS)} with {', '.join(CHANGES)}"
        )
    added = {name: set(lists.get(name, {}).get("to-add", [])) for name in LISTS}
    twice = [kind for kind, count in Counter(kind for types in added.values() for kind in types).items() if count > 1]
    if twice:
        raise AtcError("E20003", f"The content of file [{path}] is invalid: {', '.join(twice)} is in several lists")
    return tuple(sorted(added["black-list"]))


def _well_formed(lists: Any) -> bool:
    """Whether every list has only changes, and every change only names."""
    if not isinstance(lists, dict) or not all(isinstance(changes, dict) for changes in lists.values()):
        return False
    named = [(change, types) for changes in lists.values() for change, types in changes.items()]
    return set(lists) <= set(LISTS) and all(
        change in CHANGES and isinstance(types, list) and all(isinstance(kind, str) for kind in types)
        for change, types in named
    )


def _check_operators(model: onnx.ModelProto, host: Mapping[str, Any]) -> None:
    code = "E19010" if host["generation"] == "V1" else "E16002"
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            kind = f"{node.domain or 'ai.onnx'}::{opset}::{node.op_type}"
            raise AtcError(code, f"No parser is registered for Op [{node.name}, optype [{kind}]].")


def _shapes(model: onnx.ModelProto, options: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs, as they were asked for or as the graph has them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    given = _input_shapes(options.get("input_shape", ""))
    declared = {value.name: _sides(value) for value in model.graph.input if value.name not in weights}
    unknown = sorted(given.keys() - declared)
    if unknown:
        raise AtcError(
            "E10016",
            f"Opname [{unknown[0]}] specified in parameter [--input_shape] is not found in the model",
            solution="check the names of the inputs",
        )
    return {name: _agreed(name, given.get(name, sides), sides, options) for name, sides in declared.items()}


def _sides(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


def _agreed(
    name: str, shape: tuple[int, ...], declared: tuple[int, ...], options: Mapping[str, str]
) -> tuple[int, ...]:
    if len(shape) != len(declared):
        raise AtcError("E10049", f"Dimension count [{len(shape)}] of [{name}] is not [{len(declared)}]")
    dynamic = "dynamic_batch_size" in options
    if dynamic and shape[0] != -1:
        raise _invalid(options["dynamic_batch_size"], "dynamic_batch_size", f"the batch of [{name}] must be -1")
    pairs = list(zip(shape, declared, strict=True))[1 if dynamic else 0 :]
    if any(asked == -1 or has not in (-1, asked) for asked, has in pairs):
        raise AtcError("E10011", f"Shape {list(shape)} of [{name}] does not agree with the model's {list(declared)}")
    return shape


def _fix(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write the shapes of the inputs into a graph that may leave its batch open, and those that follow from them."""
    from onnx import shape_inference

    for value in model.graph.input:
        for dim, side in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, _sides(value)), strict=True):
            dim.dim_value = side
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    model.CopyFrom(shape_inference.infer_shapes(model))


def _input(name: str, shape: tuple[int, ...], options: Mapping[str, str]) -> OmTensor:
    if "insert_op_conf" not in options:
        return OmTensor(name, shape, "float32")
    path = Path(options["insert_op_conf"])
    if not path.is_file() or "aipp_op" not in path.read_text(encoding="utf-8"):
        raise AtcError("E10052", f"AIPP configuration [{path}] is invalid. Reason: it has no aipp_op")
    batch, channels, height, width = shape
    return OmTensor(name, (batch, height, width, channels), "uint8")


def _input_shapes(text: str) -> dict[str, tuple[int, ...]]:
    found = {}
    for part in filter(None, text.split(";")):
        name, colon, sides = part.rpartition(":")
        if not colon or not name or not re.fullmatch(r"-?\d+(,-?\d+)*", sides):
            raise AtcError(
                "E10002", f"Value [{text}] for parameter [--input_shape] is invalid. Reason: use name:n,c,h,w"
            )
        found[name] = tuple(int(side) for side in sides.split(","))
        if any(side == 0 or side < -1 for side in found[name]):
            raise AtcError("E10011", f"Value [{sides}] for parameter [--input_shape] is invalid")
    return found


def _outputs(model: onnx.ModelProto, options: Mapping[str, str]) -> tuple[OmTensor, ...]:
    kind = options.get("output_type", "FP32")
    if kind not in DTYPES:
        raise _invalid(kind, "output_type", f"it must be one of {', '.join(DTYPES)}")
    makers = {name: node.name for node in model.graph.node for name in node.output}
    dynamic = "dynamic_batch_size" in options
    return tuple(
        OmTensor(
            f"{makers.get(value.name, value.name)}:0:{value.name}",
            tuple(
                -1 if dynamic and not place else dim.dim_value
                for place, dim in enumerate(value.type.tensor_type.shape.dim)
            ),
            DTYPES[kind],
        )
        for value in model.graph.output
    )


def _gears(options: Mapping[str, str]) -> tuple[int, ...]:
    text = options.get("dynamic_batch_size", "")
    if not text:
        return ()
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or not 2 <= len(set(parts)) <= 100:
        raise _invalid(text, "dynamic_batch_size", "2 to 100 different batch sizes are needed")
    return tuple(int(part) for part in parts)


def _to_json(options: Mapping[str, str]) -> None:
    path = Path(_required(options, "om"))
    if not path.is_file():
        raise AtcError("E10003", f"Value [{path}] for parameter [--om] is invalid. Reason: the file does not exist")
    try:
        om = read_om(path)
    except BrokenOmError as error:
        raise AtcError("E10041", f"Failed to load model from [{path}]: {error}") from error
    Path(_required(options, "json")).write_text(json.dumps(as_json(om), indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
