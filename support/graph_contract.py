"""What an ONNX graph must look like to be deployed: opset, names, shapes, operators and sound constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from support import spec
from support.heads import head_shapes
from support.pads import kept_pads, pad_fills

if TYPE_CHECKING:
    import onnx

__all__ = ["constants", "violations"]

#: A tensor as the graph declares it: element type, and each dimension as a number or as the name of a variable.
Declaration = tuple[str, tuple[int | str, ...]]

#: Both names of the standard operator domain.
_STANDARD = ("", "ai.onnx")


def violations(
    model: onnx.ModelProto, graph: spec.Graph, network: spec.Model, batch: int, *, pads_allowed: bool
) -> list[str]:
    """
    List everything in which a graph differs from its contract.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph, with its weights inside.
    graph : spec.Graph
        Opset, input name and operators that are required.
    network : spec.Model
        The network, from which the shapes follow: one input (batch, 3, size, size), and for every level a class head
        (batch, anchors x classes, side, side), then for every level a box head (batch, anchors x 4, side, side).
    batch : int
        Batch size the graph was made for.
    pads_allowed : bool
        Whether Pads may fill with -inf, as exporters write them; false for a graph that was modified.

    Returns
    -------
    sentences : list of str
        Worst first, each with what was found and what is required; empty if the graph keeps its contract.
    """
    malformed = list(_malformed(model))
    try:
        return [*malformed, *_departures(model, graph, network, batch, pads_allowed=pads_allowed)]
    except (ValueError, IndexError) as error:
        # Sizes, types or names that contradict each other end the search.
        text = " ".join(str(error).split())
        return [*malformed, f"The graph contradicts itself: {text}; required: a graph that can be examined."]


def _departures(
    model: onnx.ModelProto, graph: spec.Graph, network: spec.Model, batch: int, *, pads_allowed: bool
) -> list[str]:
    return [
        *_opset(model, graph),
        *_input(model, graph, network, batch),
        *_outputs(model, network, batch),
        *_inferred_outputs(model),
        *_operators(model, graph),
        *_external_data(model),
        *_pads(model, pads_allowed=pads_allowed),
        *_not_finite(model),
        *_unused_initializers(model),
    ]


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return every constant of a graph by the name it is used by, whether an initializer or a Constant node."""
    nodes = (node for node in model.graph.node if node.op_type == "Constant")
    found = {node.output[0]: attribute.t for node in nodes for attribute in node.attribute if attribute.name == "value"}
    return {**{tensor.name: tensor for tensor in model.graph.initializer}, **found}


def _malformed(model: onnx.ModelProto) -> Iterator[str]:
    import onnx

    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        yield f"The ONNX checker refuses the graph: {' '.join(str(error).split())}; required: a graph that it accepts."


def _opset(model: onnx.ModelProto, graph: spec.Graph) -> Iterator[str]:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if opsets.pop("ai.onnx", None) != graph.opset:
        found = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
        yield f"The graph imports opset {found or 'none'}; required: ai.onnx {graph.opset}."
    if opsets:
        yield f"The graph imports operators of {', '.join(sorted(opsets))}; required: the domain ai.onnx alone."


def _input(model: onnx.ModelProto, graph: spec.Graph, network: spec.Model, batch: int) -> Iterator[str]:
    # Before IR version 4 every initializer had to be listed among the inputs as well.
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {value.name: _declaration(value) for value in model.graph.input if value.name not in weights}
    required = {graph.input_name: _static(batch, 3, network.image_size, network.image_size)}
    if found != required:
        yield f"The inputs are {_listed(found)}; required: {_listed(required)}."


def _outputs(model: onnx.ModelProto, network: spec.Model, batch: int) -> Iterator[str]:
    shapes = head_shapes(network, batch)
    if len(model.graph.output) != len(shapes):
        yield f"The graph has {len(model.graph.output)} outputs; required: {len(shapes)}, class heads, then box heads."
        return
    for place, (value, shape) in enumerate(zip(model.graph.output, shapes, strict=True), start=1):
        found, required = _declaration(value), _static(*shape)
        if found != required:
            yield f"Output {place} is {_listed({value.name: found})}; required: {_text(required)}."


def _inferred_outputs(model: onnx.ModelProto) -> Iterator[str]:
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph.output
    except onnx.shape_inference.InferenceError as error:
        yield f"Shape inference fails: {' '.join(str(error).split())}; required: shapes that follow from each other."
        return
    for declared, value in zip(model.graph.output, inferred, strict=True):
        if not _compatible(_declaration(declared)[1], _declaration(value)[1]):
            found = f"declared as {_text(_declaration(declared))} but computes {_text(_declaration(value))}"
            yield f"Output {declared.name} is {found}; required: the declared shape."


def _compatible(declared: tuple[int | str, ...], inferred: tuple[int | str, ...]) -> bool:
    # An exporter computes paddings in the graph; shape inference cannot see through that and leaves names.
    return len(declared) == len(inferred) and all(
        isinstance(there, str) or there == here for here, there in zip(declared, inferred, strict=True)
    )


def _operators(model: onnx.ModelProto, graph: spec.Graph) -> Iterator[str]:
    names = Counter(
        node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}" for node in model.graph.node
    )
    for name, count in names.most_common():
        if name not in graph.allowed_operators:
            yield f"The operator {name} occurs {count} times; required: operators of graph.allowed_operators alone."


def _external_data(model: onnx.ModelProto) -> Iterator[str]:
    import onnx

    outside = [tensor.name for tensor in constants(model).values() if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        yield f"{len(outside)} tensors lie in another file, the first is {outside[0]!r}; required: one file."


def _pads(model: onnx.ModelProto, *, pads_allowed: bool) -> Iterator[str]:
    kept = [] if pads_allowed else kept_pads(model)
    if kept:
        yield f"{len(kept)} Pads may fill with -inf, the first is {kept[0]!r}; required: none after modification."


def _not_finite(model: onnx.ModelProto) -> Iterator[str]:
    fills = _only_fills(model)
    for name, value in _floats(model).items():
        # Whether Pads may fill with -inf is judged above.
        bad = np.count_nonzero(~np.isfinite(value) & ~(np.isneginf(value) & (name in fills)))
        if bad:
            yield f"The constant {name!r} has {bad} of {value.size} values that are not finite; required: none."


def _only_fills(model: onnx.ModelProto) -> set[str]:
    pads = {pad.node.output[0]: pad.constant for pad in pad_fills(model)}
    elsewhere = {name for node in model.graph.node for name in node.input if name != pads.get(node.output[0])}
    return set(pads.values()) - elsewhere


def _floats(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    from onnx import TensorProto, numpy_helper

    kinds = {TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE}
    found = {name: tensor for name, tensor in constants(model).items() if tensor.data_type in kinds}
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in found.items()
        if tensor.data_location != TensorProto.EXTERNAL
    }


def _unused_initializers(model: onnx.ModelProto) -> Iterator[str]:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    unused = [tensor.name for tensor in model.graph.initializer if tensor.name not in used]
    if unused:
        yield f"{len(unused)} initializers feed no operator, the first is {unused[0]!r}; required: none."


def _declaration(value: onnx.ValueInfoProto) -> Declaration:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    dimensions = tuple(
        item.dim_value if item.HasField("dim_value") else item.dim_param or "?" for item in tensor.shape.dim
    )
    return TensorProto.DataType.Name(tensor.elem_type), dimensions


def _static(*shape: int) -> Declaration:
    return "FLOAT", shape


def _listed(declarations: dict[str, Declaration]) -> str:
    return ", ".join(f"{name!r} {_text(item)}" for name, item in declarations.items()) or "none"


def _text(declaration: Declaration) -> str:
    kind, shape = declaration
    return f"{kind.lower()} ({', '.join(map(str, shape))})"
