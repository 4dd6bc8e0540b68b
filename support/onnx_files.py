"""Reading and writing ONNX files: whole, in one file, and never through a name that leads elsewhere."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from support.errors import NoDataError, WrongDataError
from support.plain_files import read_plain

if TYPE_CHECKING:
    import onnx

__all__ = ["Shape", "graphs", "input_shapes", "load_onnx", "opset_of", "output_shapes", "save_onnx", "subgraphs"]

#: A tensor's dimensions; a name stands for a dimension that is not fixed, None for one that is not stated.
Shape = tuple[int | str | None, ...]

#: A protobuf message cannot be larger (protobuf.dev, "Proto Limits"), so such a file cannot be one ONNX model.
_MOST_BYTES = 2**31 - 1


def load_onnx(path: Path) -> onnx.ModelProto:
    """
    Read a model that is complete in one file.

    Weights in further files are refused, because the hash of an artifact would not cover them and their location is a
    path that the model chooses.

    Raises
    ------
    NoDataError
        If there is no such file.
    WrongDataError
        If the file is not a whole ONNX model, or refers to data in other files.
    """
    model = _parsed(path, _read(path))
    if not (model.ir_version and model.opset_import and model.graph.output):
        raise _not_a_model(path, "it states no opset or has no output")
    outside = [tensor.name for tensor in _tensors(model) if _is_outside(tensor)]
    if outside:
        raise WrongDataError(
            f"{path}: {len(outside)} tensors lie in other files, the first is {outside[0]!r}",
            required="a model in one file",
            remedy="load it with onnx.load and save it with onnx.save(model, FILE, save_as_external_data=False)",
        )
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model so that equal models give equal bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def opset_of(model: onnx.ModelProto) -> int:
    """
    Version of the standard operator set the model was written for.

    Raises
    ------
    WrongDataError
        If the model does not state it exactly once.
    """
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise WrongDataError(f"the model {model.graph.name!r} states opsets {versions}", required="exactly one")
    return int(versions[0])


def input_shapes(model: onnx.ModelProto) -> Mapping[str, Shape]:
    """Names and shapes of the inputs a caller has to feed, in the model's order; weights are left out."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return MappingProxyType({value.name: _shape(value) for value in model.graph.input if value.name not in weights})


def output_shapes(model: onnx.ModelProto) -> Mapping[str, Shape]:
    """Names and shapes of the outputs, in the model's order."""
    return MappingProxyType({value.name: _shape(value) for value in model.graph.output})


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs inside its nodes (branches and loop bodies), outer before inner."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs directly inside a node: the branches of an If, the body of a Loop or Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _read(path: Path) -> bytes:
    try:
        return read_plain(path, _MOST_BYTES)
    except FileNotFoundError:
        raise NoDataError(f"there is no ONNX file {path}", remedy="--onnx=FILE") from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _not_a_model(path, error.strerror) from error
        raise NoDataError(f"the ONNX file {path} cannot be read: {error}", remedy="--onnx=FILE") from error


def _parsed(path: Path, data: bytes) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own error class, which is no part of onnx
        raise _not_a_model(path, error) from error


def _not_a_model(path: Path, why: object) -> WrongDataError:
    return WrongDataError(
        f"{path} is damaged, truncated or no ONNX model: {' '.join(str(why).split())}",
        required="a whole ONNX model",
        remedy="export it again, or fetch it again",
    )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def _is_outside(tensor: onnx.TensorProto) -> bool:
    from onnx import TensorProto

    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(
        int(item.dim_value) if item.HasField("dim_value") else item.dim_param or None
        for item in value.type.tensor_type.shape.dim
    )
