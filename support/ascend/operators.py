"""Operators as the compiler names them, and what half precision holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["AVERAGING", "LARGEST_HALF", "ascend_type", "averaged_count", "float_tensors", "static_shapes"]

#: The largest finite number of half precision.
LARGEST_HALF = 65504.0
#: Operators of ONNX that sum a whole feature map before they divide.
AVERAGING = frozenset({"GlobalAveragePool", "ReduceMean"})
#: Operators of ONNX by the names the compiler's graph gives them, where they differ.
ASCEND_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "Concat": "ConcatD",
        "Conv": "Conv2D",
        "Div": "RealDiv",
        "MaxPool": "MaxPoolV3",
        "Pad": "PadV3",
        "ReduceMean": "ReduceMeanD",
        "ReduceSum": "ReduceSumD",
        "Resize": "ResizeNearestNeighborV2",
        "Slice": "StridedSliceD",
        "Transpose": "TransposeD",
    }
)


def ascend_type(node: onnx.NodeProto) -> str:
    """
    Name of an operator in the compiler's own graph.

    A convolution in groups is a type of its own there.
    """
    groups = next((item.i for item in node.attribute if item.name == "group"), 1)
    if node.op_type == "Conv" and groups > 1:
        return "DepthwiseConv2D"
    return ASCEND_TYPES.get(node.op_type, node.op_type)


def averaged_count(node: onnx.NodeProto, shape: Sequence[int]) -> int:
    """Count the numbers an averaging operator sums, from the shape of its input."""
    axes = next((list(item.ints) for item in node.attribute if item.name == "axes"), [2, 3])
    return math.prod(shape[axis] for axis in axes)


def static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a graph with static shapes, by name."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of all tensors of float32; shapes and places are integers."""
    from onnx import TensorProto, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
