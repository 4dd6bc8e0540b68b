"""Faults of export, simplification and modification: graphs that are not what their stage should have made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from support.artifacts import Artifact, file_sha256
from support.faults.bench import BATCH, Bench, replaced
from support.faults.fault import Registry
from support.onnx_files import load_onnx, save_onnx
from support.run import Run
from support.stages import modified_onnx, onnx_from_pth, simplified_onnx

if TYPE_CHECKING:
    import onnx

__all__ = ["REGISTRY", "change_weight", "edited", "largest_weight"]

REGISTRY = Registry("export")
WEIGHTS = "weights of another checkpoint, or batch norm not in inference mode"
Edit = Callable[["onnx.ModelProto"], None]


def edited(bench: Bench, artifact: Artifact, edit: Edit) -> Artifact:
    """Copy a graph and edit the copy."""
    model, path = load_onnx(artifact.path), bench.new_folder("graph") / "model.onnx"
    edit(model)
    save_onnx(model, path)
    return replace(artifact, path=path, sha256=file_sha256(path))


def _after(bench: Bench, stack: ExitStack, stage: ModuleType, edit: Edit) -> Run:
    """Edit whatever a stage makes."""
    name = stage.__name__.rpartition(".")[2]
    original: Callable[..., Artifact]

    def faulty(*arguments: Any) -> Artifact:
        return edited(bench, original(*arguments), edit)

    original = replaced(stack, stage, name, faulty)
    return bench.start()


def largest_weight(model: onnx.ModelProto, place: int = 0) -> onnx.TensorProto:
    """Find one of the largest weights of a graph, by its rank."""
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    return sorted(weights, key=lambda tensor: -int(np.prod(tensor.dims)))[place]


def change_weight(tensor: onnx.TensorProto, change: Callable[[Any], Any]) -> None:
    """Put other values into a weight."""
    from onnx import numpy_helper

    values = np.asarray(change(numpy_helper.to_array(tensor).copy()), np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@REGISTRY.add("weights_account", WEIGHTS, batch=BATCH)
def layer_of_another_checkpoint(bench: Bench, stack: ExitStack) -> Run:
    """One layer of the exported graph has the weights of another training."""
    return _after(
        bench, stack, onnx_from_pth, lambda model: change_weight(largest_weight(model), lambda values: values * 1.01)
    )


@REGISTRY.add("weights_account", WEIGHTS, batch=BATCH)
def batch_norm_in_training_mode(bench: Bench, stack: ExitStack) -> Run:
    """A batch norm was folded with the statistics of a batch instead of the trained ones."""

    def edit(model: onnx.ModelProto) -> None:
        scale = np.random.default_rng(0).uniform(0.9, 1.1, largest_weight(model, 2).dims[0]).reshape(-1, 1, 1, 1)
        change_weight(largest_weight(model, 2), lambda values: values * scale)

    return _after(bench, stack, onnx_from_pth, edit)


@REGISTRY.add("weights_account", WEIGHTS, batch=BATCH)
def weights_in_half_precision(bench: Bench, stack: ExitStack) -> Run:
    """All weights went through float16."""

    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 4:
                change_weight(tensor, lambda values: values.astype(np.float16))

    return _after(bench, stack, onnx_from_pth, edit)


@REGISTRY.add("graph_contract", "exporter or simplifier version", batch=BATCH)
def another_opset(bench: Bench, stack: ExitStack) -> Run:
    """The exporter ignored the opset and wrote its own."""

    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 12

    return _after(bench, stack, onnx_from_pth, edit)


@REGISTRY.add("graph_contract", "exporter or simplifier version", batch=BATCH, step="simplify")
def output_lost(bench: Bench, stack: ExitStack) -> Run:
    """The simplifier dropped an output."""

    def edit(model: onnx.ModelProto) -> None:
        del model.graph.output[-1]

    return _after(bench, stack, simplified_onnx, edit)


@REGISTRY.add("simplified_equals_raw", "the simplifier folded something it should not", batch=BATCH, step="simplify")
def bias_folded_away(bench: Bench, stack: ExitStack) -> Run:
    """The simplifier lost the bias of a layer."""

    def edit(model: onnx.ModelProto) -> None:
        biases = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [64]]
        change_weight(biases[0], np.zeros_like)

    return _after(bench, stack, simplified_onnx, edit)


@REGISTRY.add("coverage", "a model under the wrong name", batch=BATCH, step="simplify")
def batch_size_of_another(bench: Bench, stack: ExitStack) -> Run:
    """The graph named for one batch size is that of another."""
    given = bench.new_folder("models")
    run = bench.start()
    for batch in run.spec.batch_sizes:
        (given / f"bs{batch}.onnx").write_bytes(run.built.modified(run.spec.batch_sizes[0]).path.read_bytes())
    return bench.start(onnx=f"{given}/bs{{batch}}.onnx")


@REGISTRY.add("modified_edit", "an edit beyond the Pad constants", batch=BATCH, step="modify")
def edit_of_a_weight(bench: Bench, stack: ExitStack) -> Run:
    """The modification also changed a weight."""
    return _after(
        bench, stack, modified_onnx, lambda model: change_weight(largest_weight(model), lambda values: -values)
    )


@REGISTRY.add("pad_edit", "the modify stage", step="modify")
def pads_left_alone(bench: Bench, stack: ExitStack) -> Run:
    """The modification found no Pad and changed nothing."""
    replaced(stack, modified_onnx, "modified_onnx", lambda store, source, *_: source)
    return bench.start()


@REGISTRY.add("pad_edit", "the modify stage", step="modify")
def pad_zero_of_half_precision(bench: Bench, stack: ExitStack) -> Run:
    """The modification wrote a float16 zero into a float32 Pad, as the published script does."""

    def edit(model: onnx.ModelProto) -> None:
        from onnx import TensorProto, helper

        for tensor in model.graph.initializer:
            if tensor.name in {node.input[2] for node in model.graph.node if node.op_type == "Pad"}:
                tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT16, [], [0.0]))

    return _after(bench, stack, modified_onnx, edit)
