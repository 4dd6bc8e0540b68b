"""What the heads alone tell: which of them differ from the checkpoint's, and what that points to."""

from __future__ import annotations

from collections.abc import Sequence

from support.heads import Heads
from support.localiser.record import HeadError
from support.measurements.tensors import tensor_distance
from support.spec import Model

__all__ = ["head_errors", "head_suspect"]


def head_errors(
    reference: Heads, candidate: Heads, model: Model, logit_limit: float, box_limit: float
) -> tuple[HeadError, ...]:
    """
    Compare the heads of the same images level by level, class heads first.

    Raises
    ------
    ContractViolationError
        If they cannot be compared, see `support.measurements.tensors.tensor_distance`.
    """
    levels = range(model.min_level, model.max_level + 1)
    distances = [
        tensor_distance(*(Heads(heads.classes[place : place + 1], heads.boxes[place : place + 1]) for heads in both))
        for place in range(len(levels))
        for both in [(reference, candidate)]
    ]
    return (
        *(
            HeadError(kind="class", level=level, error=distance.logit_error, limit=logit_limit)
            for level, distance in zip(levels, distances, strict=True)
        ),
        *(
            HeadError(kind="box", level=level, error=distance.box_error, limit=box_limit)
            for level, distance in zip(levels, distances, strict=True)
        ),
    )


def head_suspect(heads: Sequence[HeadError]) -> str:
    """
    Tell what the pattern of wrong heads points to; empty if none is wrong.

    Examples
    --------
    >>> wrong = {("class", 3), ("box", 3)}
    >>> head_suspect([
    ...     HeadError(kind=kind, level=level, error=float((kind, level) in wrong), limit=0.1)
    ...     for kind in ("class", "box") for level in (3, 4)
    ... ])
    'what both heads read at P3: the last cell of the BiFPN there, or what only it reads'
    """
    every = {head.level for head in heads}
    wrong = {kind: {head.level for head in heads if head.kind == kind and head.is_red} for kind in ("class", "box")}
    both, either = wrong["class"] & wrong["box"], wrong["class"] | wrong["box"]
    if both and both == every:
        return "before the heads, which differ at every level: input, backbone or BiFPN"
    if both and both == either:
        return f"what both heads read at {_levels(both)}: the last cell of the BiFPN there, or what only it reads"
    parts = [
        f"the {kind} head at {'every level' if levels == every else _levels(levels)}"
        for kind, levels in wrong.items()
        if levels
    ]
    return " and ".join(parts)


def _levels(levels: set[int]) -> str:
    return ", ".join(f"P{level}" for level in sorted(levels))
