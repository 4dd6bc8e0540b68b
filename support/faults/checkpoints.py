"""Faults of the checkpoint: files that are not the weights they are taken for."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.faults.bench import Bench
from support.faults.fault import Registry
from support.run import Run
from support.spec import AcceptanceSpec

__all__ = ["REGISTRY", "unpinned"]

REGISTRY = Registry("checkpoint")
ANOTHER = "another model's checkpoint, or one saved in another layout"


def unpinned(spec: AcceptanceSpec) -> AcceptanceSpec:
    """Let a spec take any checkpoint, as that of COCO does, whose hash nobody has published."""
    return spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"sha256": None})})


def _saved(bench: Bench, tensors: Any) -> Path:
    import torch

    path = bench.new_folder("checkpoint") / "d0.pth"
    torch.save(tensors, path)
    return path


def _with_tensors(bench: Bench, tensors: Any) -> Run:
    return bench.start(spec=unpinned(bench.world.spec), checkpoint=_saved(bench, tensors))


@REGISTRY.add("checkpoint_contract", ANOTHER)
def missing_keys(bench: Bench, stack: ExitStack) -> Run:
    """The checkpoint lacks the tensors of one fusion node."""
    tensors = dict(bench.start().checkpoint.tensors)
    return _with_tensors(bench, {name: tensor for name, tensor in tensors.items() if ".cell.2.fnode.3." not in name})


@REGISTRY.add("checkpoint_contract", ANOTHER)
def other_classes(bench: Bench, stack: ExitStack) -> Run:
    """The class head is one of 20 classes instead of 90."""
    tensors = dict(bench.start().checkpoint.tensors)
    return _with_tensors(
        bench,
        {
            name: tensor[:180] if len(tensor.shape) and tensor.shape[0] == 810 else tensor
            for name, tensor in tensors.items()
        },
    )


@REGISTRY.add("checkpoint_contract", ANOTHER)
def infinite_weight(bench: Bench, stack: ExitStack) -> Run:
    """One weight is infinite, as after a training that diverged."""
    tensors = {name: tensor.clone() for name, tensor in bench.start().checkpoint.tensors.items()}
    tensors["box_net.predict.conv_pw.bias"][0] = float("inf")
    return _with_tensors(bench, tensors)


@REGISTRY.add("checkpoint_contract", "pinned by checkpoint.sha256", reason="wrong-data")
def weights_of_another_training(bench: Bench, stack: ExitStack) -> Run:
    """The weights are not those that the spec pins."""
    tensors = {name: tensor.clone() for name, tensor in bench.start().checkpoint.tensors.items()}
    tensors["class_net.predict.conv_pw.bias"] -= 0.7
    return bench.start(checkpoint=_saved(bench, tensors))


@REGISTRY.add("checkpoint_contract", "damaged, truncated or no checkpoint", reason="wrong-data")
def truncated_checkpoint(bench: Bench, stack: ExitStack) -> Run:
    """The download of the checkpoint broke off."""
    whole = bench.start().checkpoint.path.read_bytes()
    path = bench.new_folder("checkpoint") / "d0.pth"
    path.write_bytes(whole[: len(whole) * 9 // 10])
    return bench.start(spec=unpinned(bench.world.spec), checkpoint=path)


@REGISTRY.add("checkpoint_contract", "loading it would execute code", reason="wrong-data")
def checkpoint_with_code(bench: Bench, stack: ExitStack) -> Run:
    """Loading the checkpoint would run a command."""
    return _with_tensors(bench, {"state_dict": Command()})


class Command:
    """What a hostile pickle holds; `true` is the command."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("true",)
