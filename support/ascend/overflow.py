"""Which operators of a graph reach numbers that half precision cannot hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from support.ascend.operators import AVERAGING, LARGEST_HALF, ascend_type, averaged_count, float_tensors, static_shapes

if TYPE_CHECKING:
    import onnx

__all__ = ["Overflow", "overflowing"]


@dataclass(frozen=True)
class Overflow:
    """
    One operator that does not fit.

    `magnitude` is the largest absolute value of its result, or of the sum it divides.
    """

    name: str
    kind: str
    magnitude: float
    sums: bool

    def __str__(self) -> str:
        verb = "sums to" if self.sums else "reaches"
        return (
            f"overflow: {self.kind} {self.name} {verb} {self.magnitude:.0f}, half precision ends at {LARGEST_HALF:.0f}"
        )


def overflowing(
    model: onnx.ModelProto, tensor: NDArray[np.float32], kept_types: Collection[str]
) -> tuple[Overflow, ...]:
    """
    Run a graph in float32 and list what half precision could not hold, the largest first.

    Parameters
    ----------
    model : onnx.ModelProto
        Static shapes, one input.
    tensor : (B, 3, S, S) ndarray of float32
        Its input.
    kept_types : collection of str
        Types of operators that compute in float32, as the compiler names them.

    Returns
    -------
    overflows : tuple of Overflow
        Of the operators that are not kept.
    """
    found = _found(model, _largest(model, tensor), static_shapes(model))
    outside = [item for item in found if item.kind not in kept_types and item.magnitude > LARGEST_HALF]
    return tuple(sorted(outside, key=lambda item: -item.magnitude))


def _found(
    model: onnx.ModelProto, largest: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Overflow]:
    for node in model.graph.node:
        if node.output[0] in largest:
            sums = node.op_type in AVERAGING
            count = averaged_count(node, shapes[node.input[0]]) if sums else 1
            yield Overflow(node.name, ascend_type(node), largest[node.output[0]] * count, sums)


def _largest(model: onnx.ModelProto, tensor: NDArray[np.float32]) -> dict[str, float]:
    """Largest absolute value of every tensor; one number each leaves the runtime, so memory stays bounded."""
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    floats = float_tensors(model)
    names = [node.output[0] for node in model.graph.node if node.output[0] in floats and node.op_type != "Constant"]
    del watched.graph.output[:]
    for name in names:
        watched.graph.node.extend(_maximum(name))
        watched.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}:max", onnx.TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(None, {session.get_inputs()[0].name: tensor})
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _maximum(name: str) -> list[Any]:
    from onnx import helper

    return [
        helper.make_node("Abs", [name], [f"{name}:abs"]),
        helper.make_node("ReduceMax", [f"{name}:abs"], [f"{name}:max"], keepdims=0),
    ]
