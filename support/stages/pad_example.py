"""
A small committed graph that keeps its -inf Pads, so that every run drives the modify stage.

Its Pads take their value from a constant that another operator shares, from a Constant node of their own, and (not to
be edited) from a zero.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from support.artifacts import Artifact, file_sha256

if TYPE_CHECKING:
    import onnx

__all__ = ["make_pad_example", "pad_example", "pad_example_path"]

_MINUS_INFINITY = -float("inf")


def pad_example_path() -> Path:
    """Where the committed graph lies."""
    return Path(__file__).resolve().parents[2] / "fixtures" / "data" / "pads" / "pads.onnx"


def pad_example() -> Artifact:
    """Return the committed graph as the source of a stage; its batch size is 1."""
    path = pad_example_path()
    return Artifact("pad_example", path, file_sha256(path), {"recipe": {"made by": "make_pad_example"}}, ())


def make_pad_example() -> onnx.ModelProto:
    """
    Build the graph that `pad_example_path` holds.

    Returns
    -------
    model : onnx.ModelProto
        Opset 11, input ``x`` (1, 3, 8, 8), output ``y`` (1, 4, 2, 2), float32. Most activations are negative, so the
        edit changes the output.
    """
    from onnx import TensorProto, checker, helper

    graph = helper.make_graph(
        _nodes(),
        "pads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 2, 2])],
        _initializers(),
    )
    model = helper.make_model(graph, ir_version=6, opset_imports=[helper.make_opsetid("", 11)])
    checker.check_model(model, full_check=True)
    return model


def _nodes() -> list[onnx.NodeProto]:
    from onnx import helper

    pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
    own = helper.make_node("Constant", [], ["own_infinity"], "own_infinity", value=_scalar("", _MINUS_INFINITY))
    return [
        helper.make_node("Conv", ["x", "stem_weight", "stem_bias"], ["stem"], "stem"),
        helper.make_node("Clip", ["stem", "shared_infinity", "six"], ["clipped"], "clip"),
        helper.make_node("Pad", ["clipped", "bottom_right", "shared_infinity"], ["padded_1"], "pad_shared"),
        helper.make_node("MaxPool", ["padded_1"], ["pooled_1"], "pool_1", **pool),
        own,
        helper.make_node("Pad", ["pooled_1", "bottom_right", "own_infinity"], ["padded_2"], "pad_own"),
        helper.make_node("MaxPool", ["padded_2"], ["pooled_2"], "pool_2", **pool),
        helper.make_node("Pad", ["pooled_2", "around", "zero"], ["padded_3"], "pad_zero"),
        helper.make_node("Conv", ["padded_3", "head_weight"], ["y"], "head"),
    ]


def _initializers() -> list[onnx.TensorProto]:
    from onnx import TensorProto, helper

    return [
        _weights("stem_weight", 4, 3, 1, 1),
        helper.make_tensor("stem_bias", TensorProto.FLOAT, [4], [-1.0, -1.5, -2.0, -2.5]),
        _weights("head_weight", 4, 4, 3, 3),
        _scalar("shared_infinity", _MINUS_INFINITY),
        _scalar("six", 6.0),
        _scalar("zero", 0.0),
        helper.make_tensor("bottom_right", TensorProto.INT64, [8], [0, 0, 0, 0, 0, 0, 1, 1]),
        helper.make_tensor("around", TensorProto.INT64, [8], [0, 0, 1, 1, 0, 0, 1, 1]),
    ]


def _weights(name: str, *shape: int) -> onnx.TensorProto:
    from onnx import TensorProto, helper

    # Multiples of 1/64 in a scattered order: exact in float32 on every machine, unlike a random generator's.
    values = [(index * 37 % 64 - 32) / 64 for index in range(prod(shape))]
    return helper.make_tensor(name, TensorProto.FLOAT, shape, values)


def _scalar(name: str, value: float) -> onnx.TensorProto:
    from onnx import TensorProto, helper

    return helper.make_tensor(name, TensorProto.FLOAT, (), [value])
