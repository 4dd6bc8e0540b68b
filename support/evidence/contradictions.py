"""In what a bundle contradicts itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

from support.errors import SuiteError
from support.evidence.measured import Measured
from support.evidence.truth import truth_digests
from support.verdict import ClauseVerdict, Reading, ReleaseVerdict

__all__ = ["contradictions", "contradictions_of_release", "differences"]

#: How far a number may be from itself computed again: processors add in different orders.
TOLERANCE = 1e-9


def differences(stored: ClauseVerdict, again: ClauseVerdict) -> Iterator[str]:
    """Name every number and word in which a clause differs from itself judged again."""
    pairs = {reading.name: reading for reading in again.readings}
    for reading in stored.readings:
        twin = pairs.pop(reading.name, None)
        if twin is not None:
            yield from _differences_of_reading(reading, twin)
    if pairs or len(again.readings) != len(stored.readings):
        yield f"stored with {_names(stored)}, computed again with {_names(again)}"
    for name in ("word", "reason", "informative", "count", "expected"):
        before, after = getattr(stored, name), getattr(again, name)
        if before != after:
            yield f"{name} {before or 'none'} is stored, {after or 'none'} computed again"


def _names(verdict: ClauseVerdict) -> str:
    return ", ".join(sorted(reading.name for reading in verdict.readings)) or "no number"


def _differences_of_reading(stored: Reading, again: Reading) -> Iterator[str]:
    for name in ("value", "limit", "margin"):
        before, after = getattr(stored, name), getattr(again, name)
        if not _same(before, after):
            yield f"{name} of {stored.name} {before!r} is stored, {after!r} computed again"
    if (stored.unit, stored.direction, stored.inside) != (again.unit, again.direction, again.inside):
        yield f"{stored.name} is stored as another reading than the spec's"


def _same(before: float, after: float) -> bool:
    # A number that is none has no verdict but undetermined, which is compared beside it.
    return math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (
        math.isnan(before) and math.isnan(after)
    )


def contradictions_of_release(stored: ReleaseVerdict, again: ReleaseVerdict) -> Iterator[str]:
    """Compare the verdict of a release with what its own clauses and facts add up to."""
    if (stored.word, stored.is_release) != (again.word, again.is_release):
        yield f"the verdict is {stored.line!r}, its clauses and options add up to {again.line!r}"
    if set(stored.reasons) != set(again.reasons):
        yield f"the reasons are {', '.join(stored.reasons)}, they add up to {', '.join(again.reasons)}"
    if {clause.label for clause in stored.clauses} != {clause.label for clause in again.clauses}:
        yield "clauses that the spec requires are missing"


def contradictions(measured: Measured) -> Iterator[str]:
    """Name every fact of a document that its arrays contradict."""
    document = measured.document
    try:
        if document.dataset is not None and document.truth is not None:
            yield from _contradictions_of_data(measured)
        if document.reference is not None and not _same(document.reference.ap, measured.reference.figures.ap):
            yield _two(f"AP of the reference {document.reference.ap!r}", measured.reference.figures.ap)
        yield from _contradictions_of_ladder(measured)
    except SuiteError as error:
        yield str(error)


def _contradictions_of_data(measured: Measured) -> Iterator[str]:
    record, asked, images = measured.document.dataset, measured.document.asked, len(measured.image_ids)
    assert record is not None
    if (record.annotation_digest, record.size_digest) != truth_digests(measured.truth):
        yield "the ground truth is not the one whose digests are stored"
    whole = images if asked.limit is None else max(images, record.whole)
    if (record.images, record.whole) != (images, whole):
        yield _two(f"{record.images} of {record.whole} images", f"{images} of {whole}")


def _contradictions_of_ladder(measured: Measured) -> Iterator[str]:
    ladder, batch = measured.document.ladder, measured.spec.accuracy.ladder_batch
    rungs = {} if ladder is None else {**ladder.stages, **ladder.compiled}
    if "checkpoint" in rungs and not _same(rungs["checkpoint"], measured.reference.figures.ap):
        yield _two(f"AP of the checkpoint in the ladder {rungs['checkpoint']!r}", measured.reference.figures.ap)
    if "candidate" in rungs and not _same(rungs["candidate"], measured.candidate(batch).figures.ap):
        yield _two(f"AP of the candidate in the ladder {rungs['candidate']!r}", measured.candidate(batch).figures.ap)


def _two(stored: str, again: object) -> str:
    return f"{stored} is stored, {again} computed again"
