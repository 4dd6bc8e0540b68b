"""
Checkpoint to ONNX: one static graph for each batch size.

The TorchScript exporter is asked for by name, because torch's newer one ignores a request for opset 11 and writes 18.
It computes every padding in the graph from the size of its input, so the graphs of two batch sizes differ in the
declared shapes of inputs and outputs and in nothing else (measured with torch 2.14.1 for batch 1, 4, 16 and 64, and
tested). Only batch 1 is traced therefore: tracing batch 64 takes 31 s and 6.4 GB on two cores instead of 2 s and 1 GB
and gives the same bytes. That each graph computes what the network computes is measured at every batch size by the
clauses.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import spec
from support.artifacts import Artifact, ArtifactStore, Recipe
from support.checkpoint import Checkpoint, build_model
from support.errors import BuildFailedError
from support.heads import head_shapes
from support.onnx_files import input_shapes, load_onnx, opset_of, output_shapes, save_onnx
from support.pads import kept_pads
from support.progress import Progress
from support.stages.versions import tool_versions

if TYPE_CHECKING:
    import onnx

__all__ = ["onnx_from_pth", "output_names"]

_KIND, _FILE = "onnx", "model.onnx"
_TRACED_BATCH = 1
_TRIED_RELEASES = "install a release of torch within the bounds of pyproject.toml"


def onnx_from_pth(
    store: ArtifactStore, checkpoint: Checkpoint, model: spec.Model, graph: spec.Graph, batch: int, progress: Progress
) -> Artifact:
    """
    Export a checkpoint.

    Parameters
    ----------
    store : ArtifactStore
        Where the graph is kept.
    checkpoint : Checkpoint
        The weights.
    model : spec.Model
        The network.
    graph : spec.Graph
        Opset and name of the input.
    batch : int
        Batch size of the graph.
    progress : Progress
        Told about the export.

    Returns
    -------
    artifact : Artifact
        ``model.onnx`` with the input (batch, 3, size, size) and the outputs `output_names`, float32. Its facts hold
        the opset, the Pads that fill with -inf and the exporter's warnings.

    Raises
    ------
    ContractViolationError
        If the weights are not those of the architecture.
    BuildFailedError
        If the exporter fails or writes another opset or other inputs and outputs than it was asked for.
    ToolError
        If a tool is not installed.
    """
    inputs = {"checkpoint": checkpoint.sha256}
    if batch == _TRACED_BATCH:
        return store.get(
            _recipe(inputs, model, graph, batch), _FILE, lambda path: _export(path, checkpoint, model, graph, progress)
        )
    traced = onnx_from_pth(store, checkpoint, model, graph, _TRACED_BATCH, progress)
    recipe = _recipe({**inputs, "traced": traced.sha256}, model, graph, batch)
    return store.get(recipe, _FILE, lambda path: _save(load_onnx(traced.path), path, model, batch))


def output_names(model: spec.Model) -> tuple[str, ...]:
    """
    Names of the outputs in order: class heads fine to coarse, then box heads.

    Examples
    --------
    >>> output_names(spec.load_spec("efficientdet_d0").model)[4:6]
    ('class_p7', 'box_p3')
    """
    levels = range(model.min_level, model.max_level + 1)
    return tuple(f"{head}_p{level}" for head in ("class", "box") for level in levels)


def _recipe(inputs: Mapping[str, str], model: spec.Model, graph: spec.Graph, batch: int) -> Recipe:
    options = {
        "architecture": model.architecture,
        "classes": model.classes,
        "exporter": "torch.onnx.export(dynamo=False), constant folding",
        "input": {graph.input_name: [batch, 3, model.image_size, model.image_size]},
        "opset": graph.opset,
        "outputs": list(output_names(model)),
    }
    return Recipe(_KIND, 1, inputs, options, tool_versions("effdet", "onnx", "timm", "torch"))


def _export(
    path: Path, checkpoint: Checkpoint, model: spec.Model, graph: spec.Graph, progress: Progress
) -> dict[str, Any]:
    with progress.step(f"export {checkpoint.path.name} to ONNX"):
        network = build_model(checkpoint, model)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            _trace(network, path, model, graph)
    exported = load_onnx(path)
    _check(exported, model, graph)
    # The exporter's comments on nodes name source files of this machine.
    for node in exported.graph.node:
        node.doc_string = ""
    facts = _save(exported, path, model, _TRACED_BATCH)
    return {**facts, "warnings": list(dict.fromkeys(str(item.message) for item in heard))}


def _trace(network: Any, path: Path, model: spec.Model, graph: spec.Graph) -> None:
    import torch

    said = io.StringIO()
    example = torch.zeros(_TRACED_BATCH, 3, model.image_size, model.image_size)
    try:
        with torch.no_grad(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            torch.onnx.export(
                network,
                (example,),
                str(path),
                dynamo=False,
                opset_version=graph.opset,
                input_names=[graph.input_name],
                output_names=list(output_names(model)),
                do_constant_folding=True,
            )
    except OSError:
        raise  # the store tells a full disk from a failed build
    except Exception as error:  # what the exporter raises is not bounded
        raise BuildFailedError(
            f"torch {torch.__version__} could not export {model.architecture}: {type(error).__name__}: {error}"
            f"{chr(10) if said.getvalue() else ''}{said.getvalue()[-2000:]}",
            remedy=_TRIED_RELEASES,
        ) from error


def _check(exported: onnx.ModelProto, model: spec.Model, graph: spec.Graph) -> None:
    size = model.image_size
    required = {
        "opset": graph.opset,
        "inputs": {graph.input_name: (_TRACED_BATCH, 3, size, size)},
        "outputs": [(name, shape[1]) for name, shape in _heads(model, _TRACED_BATCH).items()],
    }
    found = {
        "opset": opset_of(exported),
        "inputs": dict(input_shapes(exported)),
        # The exporter leaves names in the other dimensions; only the channels can be compared.
        "outputs": [(name, shape[1] if len(shape) == 4 else shape) for name, shape in output_shapes(exported).items()],
    }
    for what, wanted in required.items():
        if found[what] != wanted:
            raise BuildFailedError(
                f"the exporter was asked for {what} {wanted} and wrote {found[what]}", remedy=_TRIED_RELEASES
            )


def _save(exported: onnx.ModelProto, path: Path, model: spec.Model, batch: int) -> dict[str, Any]:
    """Declare the shapes of a batch size and write the graph; gives the facts of the artifact."""
    heads = _heads(model, batch)
    for value in exported.graph.output:
        for dimension, size in zip(value.type.tensor_type.shape.dim, heads[value.name], strict=True):
            dimension.dim_value = size
    exported.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    save_onnx(exported, path)
    return {"opset": opset_of(exported), "kept_pads": kept_pads(exported)}


def _heads(model: spec.Model, batch: int) -> dict[str, tuple[int, ...]]:
    return dict(zip(output_names(model), head_shapes(model, batch), strict=True))
