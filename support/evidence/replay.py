"""Replay: every verdict of a bundle judged again, from its arrays where they decide and from its numbers elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from support.capabilities import CPU
from support.errors import ContractViolationError, SuiteError
from support.evidence.bundle import Bundle
from support.evidence.contradictions import contradictions, contradictions_of_release, differences
from support.evidence.measured import Measured
from support.evidence.measurements import measured_again
from support.evidence.model import EvidenceDocument
from support.verdict import ClauseVerdict, ReleaseVerdict, failure, judge, release_verdict
from support.waivers import waive

__all__ = ["BUNDLE", "is_release", "replay", "required_clauses", "session_reasons"]

#: Stands in the table of clauses for what is wrong with a bundle beyond any one of them.
BUNDLE = "evidence"
#: First suspect of everything that is not the same when it is computed again.
EDITED = "the bundle was edited, or made by another version of the suite"


def replay(bundle: Bundle, *, release: bool = False) -> ReleaseVerdict:
    """
    Recompute the verdict of a bundle, needing neither device nor weights nor images.

    AP and its drops, agreement, coverage and throughput are measured again from detections, ground truth and timing
    samples. What needs models or tensors is judged again from its stored numbers against the limits of the stored
    spec. Words are never taken over, except of clauses without a number: those that were not measured stay
    undetermined, and violated contracts stay rejected.

    Parameters
    ----------
    bundle : Bundle
        As `support.evidence.bundle.read_bundle` opened it.
    release : bool
        Whether anything short of a release is ``not-a-release``, whatever the run itself was asked for.

    Returns
    -------
    verdict : ReleaseVerdict
        With the scope ``replay``. A clause whose number or verdict differs from the stored one is rejected, naming
        both; so is the clause ``evidence``, which is there only if the bundle contradicts itself otherwise.
    """
    document, measured = bundle.document, Measured(bundle)
    clauses = [_replayed(stored, measured) for stored in document.release.clauses]
    summed_up = _released(document, document.release.clauses)
    problems = (*contradictions_of_release(document.release, summed_up), *contradictions(measured))
    if problems:
        clauses.append(ClauseVerdict(clause=BUNDLE, word="rejected", findings=problems, suspect=EDITED))
    return _released(document, clauses, release=release)


def required_clauses(document: EvidenceDocument) -> tuple[tuple[str, int | None], ...]:
    """Name every clause that the run of a document had to measure; computed from its spec."""
    scopes = frozenset({"throughput"}) if document.release.scope == "throughput" else frozenset({"gate", "throughput"})
    asked = document.asked
    return document.spec.required(mode=asked.mode, chip=asked.chip, scopes=scopes, comparing=asked.comparing)


def session_reasons(document: EvidenceDocument, *, release: bool) -> tuple[str, ...]:
    """Give the reasons of a session as a whole: the stored ones, and those that its facts demand."""
    demanded = {
        "simulated": document.simulated,
        "not-a-release": (release or document.asked.release) and not is_release(document),
    }
    return (*document.session_reasons, *(reason for reason, holds in demanded.items() if holds))


def _released(document: EvidenceDocument, clauses: Iterable[ClauseVerdict], *, release: bool = False) -> ReleaseVerdict:
    return release_verdict(
        clauses,
        required_clauses(document),
        scope="replay",
        subject=document.release.subject,
        session_reasons=session_reasons(document, release=release),
        is_release=is_release(document),
    )


def is_release(document: EvidenceDocument) -> bool:
    """Whether the run of a document was one of a release; what its facts deny, its options cannot claim."""
    asked = document.asked
    short = (
        asked.chip == CPU
        or document.simulated
        or asked.mode == "results"
        or asked.limit is not None
        or not document.spec.published
        or set(asked.batch_sizes) != set(document.spec.batch_sizes)
    )
    return not short and not asked.not_release and document.release.scope == "gate"


def _replayed(stored: ClauseVerdict, measured: Measured) -> ClauseVerdict:
    try:
        again = _judged(stored, measured)
        _require_same(stored, again)
    except ContractViolationError as error:
        return failure(stored.clause, error, batch=stored.batch)
    return again


def _require_same(stored: ClauseVerdict, again: ClauseVerdict) -> None:
    different = tuple(differences(stored, again))
    if different:
        why = () if again.readings else again.findings[:1]
        raise ContractViolationError(
            f"{stored.label}: {'; '.join((*different, *why))}",
            required="the same when it is computed again",
            remedy=EDITED,
        )


def _judged(stored: ClauseVerdict, measured: Measured) -> ClauseVerdict:
    if not stored.readings:
        if stored.word == "accepted":
            raise ContractViolationError(f"{stored.label} is accepted without a number")
        return stored
    if (stored.clause, stored.batch) not in required_clauses(measured.document):
        raise ContractViolationError(f"{stored.label} is no clause that the spec has for this run")
    clause = measured.spec.clauses[stored.clause]
    try:
        measurement = measured_again(stored, measured)
        again = judge(stored.clause, clause, measurement, batch=stored.batch)
    except SuiteError as error:
        return failure(stored.clause, error, batch=stored.batch)
    except ValueError as error:
        raise ContractViolationError(f"{stored.label}: {error}") from None
    return waive(again, measured.document.waivers)
