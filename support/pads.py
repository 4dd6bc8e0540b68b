"""Pads of a graph: what they fill with, and how to make one fill with 0."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from support.onnx_files import graphs, subgraphs

if TYPE_CHECKING:
    import onnx

__all__ = ["PadFill", "drop_unused_constants", "kept_pads", "pad_fills"]

#: Input of Pad that holds the fill value since opset 11; before, it is an attribute (ONNX operator reference, Pad).
_FILL_INPUT = 2
_FILL_ATTRIBUTE = "value"


@dataclass(frozen=True)
class PadFill:
    """
    One Pad and the constant it fills with.

    Parameters
    ----------
    graph : onnx.GraphProto
        The graph that holds the Pad.
    node : onnx.NodeProto
        The Pad.
    tensor : onnx.TensorProto, optional
        Its fill value; None if the value is computed, so that it cannot be read from the graph.
    """

    graph: onnx.GraphProto
    node: onnx.NodeProto
    tensor: onnx.TensorProto | None

    @property
    def name(self) -> str:
        """Name of the Pad, or of its output where the exporter gave it none."""
        return str(self.node.name or self.node.output[0])

    @property
    def constant(self) -> str:
        """Name of the constant that holds the value; empty if an attribute holds it or it is the default."""
        return str(self.node.input[_FILL_INPUT]) if len(self.node.input) > _FILL_INPUT else ""

    @property
    def value(self) -> Any:
        """The value as an array of its own type, or None."""
        from onnx import numpy_helper

        return None if self.tensor is None else numpy_helper.to_array(self.tensor)

    @property
    def is_negative_infinite(self) -> bool:
        """Whether the Pad fills with -inf."""
        return self.tensor is not None and bool((self.value == -float("inf")).any())

    def fill_with_zero(self) -> None:
        """Fill with 0 of the same type and shape instead; other users of the constant keep it."""
        from onnx import helper

        attribute = _fill_attribute(self.node)
        if attribute is not None:
            attribute.f = 0.0
        elif self.tensor is not None:
            kind, dims = self.tensor.data_type, self.tensor.dims
            zero = helper.make_tensor(f"{self.node.output[0]}/zero", kind, dims, [0.0] * prod(dims))
            self.graph.initializer.append(zero)
            self.node.input[_FILL_INPUT] = zero.name

    def forget_fill(self) -> None:
        """Leave no trace of the value in the node, so that two Pads can be compared apart from it."""
        attribute = _fill_attribute(self.node)
        if attribute is not None:
            self.node.attribute.remove(attribute)
        elif self.constant:
            self.node.input[_FILL_INPUT] = ""


def pad_fills(model: onnx.ModelProto) -> list[PadFill]:
    """List the Pads that fill with a value, in graph order; those that reflect or repeat the edge have none."""
    return list(_pad_fills(model.graph, {}))


def kept_pads(model: onnx.ModelProto) -> list[str]:
    """Names of the Pads that fill with -inf, or with a computed value that cannot be shown to be anything else."""
    return [pad.name for pad in pad_fills(model) if pad.is_negative_infinite or pad.tensor is None]


def drop_unused_constants(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Remove those of the named constants that nothing uses, with their type declarations."""
    unused = set(names) - _used(model)
    for graph in graphs(model.graph):
        _keep(graph.initializer, lambda tensor: tensor.name not in unused)
        _keep(graph.node, lambda node: node.op_type != "Constant" or node.output[0] not in unused)
        _keep(graph.value_info, lambda value: value.name not in unused)


def _keep(items: Any, wanted: Any) -> None:
    for item in [item for item in items if not wanted(item)]:
        items.remove(item)


def _used(model: onnx.ModelProto) -> set[str]:
    # Before IR version 4 weights are listed as inputs too; without its weight such an input would have to be fed.
    used: set[str] = set()
    for graph in graphs(model.graph):
        used.update(name for node in graph.node for name in node.input)
        used.update(value.name for value in (*graph.input, *graph.output))
    return used


def _pad_fills(graph: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]) -> Iterator[PadFill]:
    constants = {**outer, **_constants(graph)}
    for node in graph.node:
        if node.op_type == "Pad" and _mode(node) == "constant":
            yield PadFill(graph, node, _fill(node, constants))
        for inner in subgraphs(node):
            yield from _pad_fills(inner, constants)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], tensor) for tensor in _constant(node))
        # Exporters that merge equal weights put an Identity between the one they keep and its users.
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _constant(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.name == "value":
            yield attribute.t
        elif attribute.name == "value_float":
            yield _scalar(attribute.f)


def _fill(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    attribute = _fill_attribute(node)
    if attribute is not None:
        return _scalar(attribute.f)
    if len(node.input) <= _FILL_INPUT or not node.input[_FILL_INPUT]:
        return _scalar(0.0)  # the operator's default
    return constants.get(node.input[_FILL_INPUT])


def _scalar(value: float) -> onnx.TensorProto:
    from onnx import TensorProto, helper

    return helper.make_tensor("", TensorProto.FLOAT, (), [value])


def _fill_attribute(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    return next((item for item in node.attribute if item.name == _FILL_ATTRIBUTE), None)


def _mode(node: onnx.NodeProto) -> str:
    return next((item.s.decode() for item in node.attribute if item.name == "mode"), "constant")
