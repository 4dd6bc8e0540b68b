"""Measurements on raw heads: how far those of one stage are from those of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from support.clauses import Precision
from support.errors import ContractViolationError
from support.heads import Heads, require_finite
from support.verdict import Measurement

__all__ = ["TensorDistance", "simplified_equals_raw", "slot_error", "stage_tensors", "tensor_distance"]


@dataclass(frozen=True)
class TensorDistance:
    """
    How far two sets of heads of the same images are apart.

    Parameters
    ----------
    logit_error : float
        Greatest absolute difference of a class logit.
    box_error : float
        Greatest relative difference of a box code: for every image and level the greatest absolute difference, divided
        by the greatest absolute code of the reference there, but at least by 1. A code of 1 moves a box by a whole
        side of its anchor or stretches it by e, so codes below 1 are compared as they are.
    images : int
        How many images were compared.
    findings : tuple of str
        The error of each head and the slot of the batch it is in, worst first; the first is the first suspect.
    """

    logit_error: float
    box_error: float
    images: int
    findings: tuple[str, ...]


def tensor_distance(reference: Heads, candidate: Heads) -> TensorDistance:
    """
    Compare two sets of heads of the same images.

    Raises
    ------
    ContractViolationError
        If the heads differ in number, shape or type, or hold a value that is not finite; nothing is compared then.
    ValueError
        If there is no image to compare.

    Examples
    --------
    >>> import numpy as np
    >>> def heads(logit, code):
    ...     return Heads((np.full((1, 9, 2, 2), logit, "f4"),), (np.full((1, 36, 2, 2), code, "f4"),))
    >>> distance = tensor_distance(heads(-5.0, 2.0), heads(-5.5, 3.0))
    >>> distance.logit_error, distance.box_error
    (0.5, 0.5)
    """
    _require_comparable(reference, candidate)
    logits = [_logit_errors(*pair) for pair in zip(reference.classes, candidate.classes, strict=True)]
    boxes = [_box_errors(*pair) for pair in zip(reference.boxes, candidate.boxes, strict=True)]
    return TensorDistance(
        logit_error=max(float(errors.max()) for errors in logits),
        box_error=max(float(errors.max()) for errors in boxes),
        images=reference.batch,
        findings=_table(candidate.titles(), ["logit"] * len(logits) + ["relative"] * len(boxes), [*logits, *boxes]),
    )


def simplified_equals_raw(raw: Heads, simplified: Heads) -> Measurement:
    """
    Measure what simplification changed, for the clause ``simplified_equals_raw``.

    Parameters
    ----------
    raw, simplified : Heads
        Of the two graphs, for the same images, on the same runtime.

    Raises
    ------
    ContractViolationError
        If the heads cannot be compared, see `tensor_distance`.
    """
    return _measurement(tensor_distance(raw, simplified), variant="")


def stage_tensors(
    reference: Heads,
    candidate: Heads,
    *,
    pads_kept: bool,
    precision: Precision,
    suspect: str | Callable[[], str] = "",
) -> Measurement:
    """
    Measure how far the candidate is from the checkpoint's own network, for the clause ``stage_tensors``.

    Parameters
    ----------
    reference : Heads
        Of the eager network.
    candidate : Heads
        Of the model under test, for the same images.
    pads_kept : bool
        Whether the candidate's graph had kept its -inf Pads, so that they now fill with 0. That changes values where
        a max-pool meets negative activations at the border, and has limits of its own.
    precision : {"full", "mixed"}
        What the candidate computes in; mixed precision has limits of its own, unless those for kept Pads are wider.
    suspect : str or callable, optional
        First thing to look at if the clause is red.

    Raises
    ------
    ContractViolationError
        If the heads cannot be compared, see `tensor_distance`.
    """
    variant = "kept" if pads_kept else "mixed" if precision == "mixed" else "folded"
    return replace(_measurement(tensor_distance(reference, candidate), variant=variant), suspect=suspect)


def slot_error(heads: Heads) -> float:
    """
    Greatest difference of a logit from the first slot to any other, where one and the same image fills every slot.

    Parameters
    ----------
    heads : Heads
        Of a batch of at least two; for a model of batch 1, of two runs joined.

    Raises
    ------
    ContractViolationError
        If a value is not finite.
    ValueError
        If there is a single slot.
    """
    first, *others = [heads.row(slot) for slot in range(heads.batch)]
    if not others:
        raise ValueError("one slot alone cannot be compared: join two runs of a model of batch 1")
    return max(tensor_distance(first, other).logit_error for other in others)


def _measurement(distance: TensorDistance, *, variant: str) -> Measurement:
    prefix = {"kept": "padded_", "mixed": "mixed_"}.get(variant, "")
    return Measurement(
        {f"{prefix}logit_error": distance.logit_error, f"{prefix}box_error": distance.box_error},
        count=distance.images,
        expected=distance.images,
        findings=distance.findings,
        variant=variant,
    )


def _require_comparable(reference: Heads, candidate: Heads) -> None:
    wanted, given = _described(reference), _described(candidate)
    if wanted != given:
        raise ContractViolationError(
            f"the heads to compare are {given}",
            required=f"{wanted}, as the reference has",
            remedy="check architecture, image size and batch size of the model",
        )
    if not reference.batch:
        raise ValueError("there is no image to compare")
    require_finite(reference)
    require_finite(candidate)


def _described(heads: Heads) -> str:
    kinds = {"class": heads.classes, "box": heads.boxes}
    return ", ".join(f"{kind} {head.dtype} {list(head.shape)}" for kind, levels in kinds.items() for head in levels)


def _logit_errors(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.float64]:
    # Image by image, because a whole batch of 64 would need another 1.7 GB; in float64, where nothing overflows.
    pairs = zip(reference, candidate, strict=True)
    return np.array([np.abs(np.subtract(there, here, dtype=np.float64)).max() for here, there in pairs])


def _box_errors(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.float64]:
    scales = np.array([max(1.0, np.abs(image).max()) for image in reference], np.float64)
    return _logit_errors(reference, candidate) / scales


def _table(titles: Sequence[str], units: Sequence[str], errors: Sequence[NDArray[np.float64]]) -> tuple[str, ...]:
    rows = sorted(zip(errors, titles, units, strict=True), key=lambda row: -row[0].max())
    return tuple(f"{title}: {error.max():.3g} {unit} (image slot {error.argmax()})" for error, title, unit in rows)
