"""What a compiled model computes: a graph whose lowered operators round as half precision does."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from support.ascend.operators import AVERAGING, LARGEST_HALF, ascend_type, averaged_count, float_tensors, static_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["lowered", "lowered_nodes"]

#: They move numbers or choose among them, and so add no rounding of their own.
MOVING = frozenset(
    {
        *("Concat", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Pad", "Relu", "Reshape", "Resize"),
        *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
#: Of these every input is data; of the other moving operators the first, the rest are shapes and places.
JOINING = frozenset({"Concat", "Max", "Min"})
#: They tell shapes and constants; what reads a constant rounds it.
WITHOUT_DATA = frozenset({"Constant", "ConstantOfShape", "Shape"})
#: Modes that compute in the precision of the ONNX where the device can, as it can with all of the network.
KEEPING = frozenset({"allow_fp32_to_fp16", "cube_fp16in_fp32out", "force_fp32", "must_keep_origin_dtype"})
#: Modes that a list of exceptions can change.
MIXED = frozenset({"allow_mix_precision", "allow_mix_precision_fp16"})
#: Names of the ends of half precision in a graph that saturates.
LIMITS = ("half:least", "half:most")


def lowered_nodes(model: onnx.ModelProto, mode: str, black: Collection[str]) -> list[str]:
    """
    Name the operators a precision mode computes in half precision.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph; every node has a name.
    mode : str
        A value of ``--precision_mode``.
    black : collection of str
        Types, as the compiler names them, that a mixed mode leaves in float32.
    """
    if mode in KEEPING:
        return []
    kept = set(black) if mode in MIXED else set()
    return [
        node.name for node in model.graph.node if node.op_type not in WITHOUT_DATA and ascend_type(node) not in kept
    ]


def lowered(model: onnx.ModelProto, nodes: Collection[str], *, saturate: bool) -> onnx.ModelProto:
    """
    Rewrite a graph so that some operators compute as in half precision.

    A lowered operator reads rounded numbers, its weights among them, and writes rounded ones. Sums inside a
    convolution stay exact, as the matrix unit keeps them in float32. An average is a sum in half precision, then a
    division: the sum of a large feature map does not fit. Each tensor is rounded once, whoever reads it.

    Parameters
    ----------
    model : onnx.ModelProto
        Opset 11, float32, static shapes, nodes in an order in which they can run.
    nodes : collection of str
        Names of the lowered operators.
    saturate : bool
        Whether a number that does not fit becomes the largest one that does, instead of infinity.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    writer = _Writer(result, saturate)
    names, fused = set(nodes), _inside_swish(model)
    for node in model.graph.node:
        if node.name not in names:
            writer.keep(node)
        elif node.op_type in MOVING:
            writer.move(node)
        elif node.name in fused:
            writer.fuse(node)
        elif node.op_type in AVERAGING:
            writer.average(node)
        else:
            writer.lower(node)
    del result.graph.node[:]
    result.graph.node.extend(writer.nodes)
    return result


def _inside_swish(model: onnx.ModelProto) -> set[str]:
    """Sigmoids that only gate their own input: the compiler makes one operator of both, which rounds once."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return {
        node.name
        for node in model.graph.node
        if node.op_type == "Sigmoid"
        and all(mul.op_type == "Mul" and node.input[0] in mul.input for mul in readers.get(node.output[0], []))
    }


class _Writer:
    """Writes the nodes of the lowered graph, and knows which tensors are rounded already."""

    def __init__(self, model: onnx.ModelProto, saturate: bool) -> None:
        self.nodes = [*_limits()] if saturate else []
        self._saturate = saturate
        self._shapes = static_shapes(model)
        # Only float32 has anything to round: shapes and places are integers.
        self._floats = float_tensors(model)
        self._rounded: set[str] = set()

    def keep(self, node: onnx.NodeProto) -> None:
        """Write a node as it is."""
        self.nodes.append(node)

    def move(self, node: onnx.NodeProto) -> None:
        """Write a node whose results are as round as what it moves."""
        self.nodes.append(node)
        if self._rounded.issuperset(node.input if node.op_type in JOINING else node.input[:1]):
            self._rounded.update(node.output)

    def fuse(self, node: onnx.NodeProto) -> None:
        """Write the first part of an operator whose second part rounds."""
        self.nodes.append(self._reading(node))
        self._rounded.update(node.output)

    def lower(self, node: onnx.NodeProto) -> None:
        """Write a node between the rounding of what it reads and of what it writes."""
        lowered = self._reading(node)
        self.nodes.append(lowered)
        for place, name in enumerate(node.output):
            lowered.output[place] = f"{name}:exact"
            self._round(f"{name}:exact", name)

    def average(self, node: onnx.NodeProto) -> None:
        """Write an average as a rounded sum and a rounded quotient."""
        from onnx import helper

        axes = next((list(item.ints) for item in node.attribute if item.name == "axes"), [2, 3])
        keepdims = next((item.i for item in node.attribute if item.name == "keepdims"), 1)
        target, source = node.output[0], self._reading(node).input[0]
        count = np.array(averaged_count(node, self._shapes[node.input[0]]), np.float32)
        total, divisor, mean = f"{target}:sum", f"{target}:count", f"{target}:mean"
        self.nodes.append(
            helper.make_node("ReduceSum", [source], [f"{total}:exact"], total, axes=axes, keepdims=keepdims)
        )
        self._round(f"{total}:exact", total)
        self.nodes.append(_constant(divisor, count))
        self.nodes.append(helper.make_node("Div", [total, divisor], [mean], mean))
        self._round(mean, target)

    def _reading(self, node: onnx.NodeProto) -> Any:
        """Copy a node so that it reads rounded tensors; those that are not are rounded here, once for all readers."""
        import onnx

        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in self._floats and name not in self._rounded:
                copy.input[place] = f"{name}:rounded"
                if f"{name}:rounded" not in self._rounded:
                    self._round(name, f"{name}:rounded")
        return copy

    def _round(self, source: str, target: str) -> None:
        from onnx import TensorProto, helper

        clipped = f"{target}:clipped" if self._saturate else source
        if self._saturate:
            self.nodes.append(helper.make_node("Clip", [source, *LIMITS], [clipped], f"{target}:clip"))
        self.nodes += [
            helper.make_node("Cast", [clipped], [f"{target}:half"], f"{target}:to_half", to=TensorProto.FLOAT16),
            helper.make_node("Cast", [f"{target}:half"], [target], f"{target}:from_half", to=TensorProto.FLOAT),
        ]
        self._rounded.add(target)


def _limits() -> list[onnx.NodeProto]:
    values = (-LARGEST_HALF, LARGEST_HALF)
    return [_constant(name, np.array(value, np.float32)) for name, value in zip(LIMITS, values, strict=True)]


def _constant(name: str, value: Any) -> onnx.NodeProto:
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], name, value=numpy_helper.from_array(value, name))
