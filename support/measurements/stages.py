"""Clauses about the checkpoint and the edit of the graph."""

from __future__ import annotations

from collections.abc import Sequence

from support import spec
from support.artifacts import Artifact
from support.checkpoint import Checkpoint, key_violations
from support.errors import WrongDataError
from support.onnx_files import load_onnx
from support.pads import kept_pads
from support.stages.modified_onnx import graph_differences
from support.verdict import Measurement

__all__ = ["checkpoint_contract", "modified_edit", "pad_edit"]

#: Findings shown; the number of all of them is the value of the clause.
_SHOWN = 10


def checkpoint_contract(checkpoint: Checkpoint, model: spec.Model) -> Measurement:
    """
    Compare a checkpoint with the tensors that the architecture wants.

    Returns
    -------
    measurement : Measurement
        ``key_violations``; counted are the tensors of the checkpoint.
    """
    violations, count = key_violations(checkpoint, model), len(checkpoint.tensors)
    return Measurement(
        {"key_violations": len(violations)},
        count=count,
        expected=count,
        findings=_shown(violations),
        origin={
            "checkpoint": checkpoint.sha256,
            "architecture": checkpoint.architecture,
            "known as": checkpoint.known_as,
            "layout": checkpoint.layout,
        },
    )


def modified_edit(before: Artifact, after: Artifact) -> Measurement:
    """
    Count what the modify stage changed beyond the -inf of Pads.

    Parameters
    ----------
    before, after : Artifact
        Source and product of the stage.

    Returns
    -------
    measurement : Measurement
        ``differences``; counted are the nodes and weights of the source.
    """
    old, new = load_onnx(before.path), load_onnx(after.path)
    differences, count = graph_differences(old, new), len(old.graph.node) + len(old.graph.initializer)
    return Measurement(
        {"differences": len(differences)},
        count=count,
        expected=count,
        findings=_shown(differences),
        origin={"before": before.sha256, "after": after.sha256},
    )


def pad_edit(before: Artifact, after: Artifact) -> Measurement:
    """
    Count what the modify stage got wrong on a graph that keeps its -inf Pads.

    Parameters
    ----------
    before, after : Artifact
        The graph with -inf Pads and what the stage made of it.

    Returns
    -------
    measurement : Measurement
        ``differences`` and ``kept_pads``; counted are the -inf Pads of the source.

    Raises
    ------
    WrongDataError
        If the source has no such Pad, so that nothing would be tested.
    """
    old, new = load_onnx(before.path), load_onnx(after.path)
    count = len(kept_pads(old))
    if not count:
        raise WrongDataError(f"{before.path} has no Pad that fills with -inf", required="a graph that keeps its Pads")
    differences, kept = graph_differences(old, new), kept_pads(new)
    return Measurement(
        {"differences": len(differences), "kept_pads": len(kept)},
        count=count,
        expected=count,
        findings=_shown([*(f"Pad {name} is not edited" for name in kept), *differences]),
        origin={"before": before.sha256, "after": after.sha256},
    )


def _shown(sentences: Sequence[str]) -> tuple[str, ...]:
    rest = len(sentences) - _SHOWN
    return (*sentences[:_SHOWN], *((f"and {rest} more",) if rest > 0 else ()))
