"""The way up to all images: rung by rung, as long as the candidate agrees with its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from support.agreement import match
from support.clauses import RUNG_CLAUSE
from support.detections import Detections
from support.errors import RejectedEarlyError, SuiteError
from support.measurements.agreement import early_agreement
from support.rungs import rung_sizes
from support.spec import AcceptanceSpec
from support.verdict import Measurement, Reading, outside

__all__ = ["Look", "climb"]

#: Gives the detections of some images, by their ids.
Look = Callable[[Sequence[int]], Detections]


def climb(
    order: Sequence[int],
    batch: int,
    spec: AcceptanceSpec,
    *,
    candidate: Look,
    reference: Look,
    overflow: Callable[[int], str] | None = None,
) -> None:
    """
    Look at a candidate on a few images, then on more.

    A rung judges all images seen so far. Nothing follows from a rung that lets a candidate through, nor from one that
    has no reference: what keeps that from being measured is told by the clauses that need it.

    Parameters
    ----------
    order : sequence of int
        Ids of all images of the run, as `support.rungs.rung_order` sorts them.
    batch : int
        Batch size of the candidate.
    spec : AcceptanceSpec
        Sizes and limits of the rungs.
    candidate, reference : callable
        Give the detections of images by their ids. The candidate is asked for images it has not seen yet, the reference
        for all of a rung.
    overflow : callable, optional
        As for `support.measurements.agreement.score_agreement`.

    Raises
    ------
    RejectedEarlyError
        If a number is outside the limits of its rung.
    """
    seen: list[Detections] = []
    done = 0
    rungs = zip(rung_sizes(len(order), batch, spec.rungs), (spec.rungs.first, spec.rungs.second), strict=False)
    for size, limits in rungs:
        try:
            wanted = reference(order[:size])
        except SuiteError:
            return
        seen.append(candidate(order[done:size]))
        matches = match(wanted, Detections.concatenate(seen), spec.accuracy, spec.model.max_detections)
        measured = early_agreement(matches, spec.accuracy, spec.rungs, len(order), overflow=overflow)
        broken = outside(limits, measured.values)
        if broken:
            raise _rejected(measured, broken, batch, spec.clauses[RUNG_CLAUSE].suspect)
        done = size


def _rejected(measured: Measurement, broken: Sequence[Reading], batch: int, suspect: str) -> RejectedEarlyError:
    seen = ", ".join(f"{reading.name} {reading.value:.4g}" for reading in broken)
    limits = ", ".join(f"{reading.name} at most {reading.limit:g}" for reading in broken)
    found = measured.suspect() if callable(measured.suspect) else measured.suspect
    return RejectedEarlyError(
        f"rejected early at batch {batch}: {measured.count} of {measured.expected} images were enough: {seen}; "
        + "; ".join(measured.findings),
        required=f"{limits}, on these images compared with the reference",
        remedy=f"{found or suspect}; --rungs=off measures all images",
    )
