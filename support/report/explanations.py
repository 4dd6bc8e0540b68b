"""What stands behind every clause that is not simply accepted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from support.report.text import measured, number
from support.verdict import REASONS, ClauseVerdict, Reading, ReleaseVerdict

__all__ = ["Explanation", "explanations"]

SIGN = {"min": "≥", "max": "≤"}
#: Findings shown of one clause; the bundle holds all of them.
SHOWN = 5


@dataclass(frozen=True)
class Explanation:
    """
    Why something is not accepted.

    Parameters
    ----------
    state : str
        ``rejected``, ``undetermined``, or ``finding`` for what does not decide.
    heading : str
        The clause, or the reason that several share.
    points : tuple of str
        Measured against required at each batch size, or the clauses that share the reason.
    findings : tuple of str
        What was seen, worst first.
    suspect : str
        What to look at first, or what to do.
    """

    state: str
    heading: str
    points: tuple[str, ...]
    findings: tuple[str, ...]
    suspect: str


def explanations(release: ReleaseVerdict) -> tuple[Explanation, ...]:
    """Explain rejections first, then each cause of undetermined clauses once, then what does not decide."""
    deciding = [clause for clause in release.clauses if not clause.informative]
    rejected = [clause for clause in deciding if clause.word == "rejected"]
    informing = [clause for clause in release.clauses if clause.informative]
    undetermined = [clause for clause in deciding if clause.word == "undetermined"]
    return (*_of_clauses("rejected", rejected), *_of_causes(undetermined), *_of_clauses("finding", informing))


def _of_clauses(state: str, clauses: Sequence[ClauseVerdict]) -> Iterator[Explanation]:
    for name, group in groupby(clauses, key=lambda clause: clause.clause):
        members = list(group)
        worst = min(members, key=_relative_margin)
        points = [_comparison(clause, reading) for clause in members for reading in _told(clause, state)]
        yield Explanation(state, f"{name}{_batches(members)}", tuple(points), worst.findings[:SHOWN], worst.suspect)


def _of_causes(clauses: Sequence[ClauseVerdict]) -> Iterator[Explanation]:
    causes: dict[tuple[str, tuple[str, ...]], list[ClauseVerdict]] = {}
    for clause in clauses:
        # The findings of a measured clause are no cause of its being partial.
        cause = () if clause.readings else clause.findings[:SHOWN]
        causes.setdefault((clause.reason, cause), []).append(clause)
    for (reason, findings), members in causes.items():
        names = [f"{name}{_batches(list(group))}" for name, group in groupby(members, key=lambda clause: clause.clause)]
        yield Explanation("undetermined", reason, tuple(names), findings, REASONS.get(reason, ""))


def _told(clause: ClauseVerdict, state: str) -> list[Reading]:
    return [reading for reading in clause.readings if state == "finding" or not reading.inside]


def _comparison(clause: ClauseVerdict, reading: Reading) -> str:
    where = "" if clause.batch is None else f"batch {clause.batch}: "
    limit = f"required {SIGN[reading.direction]} {number(reading.limit)}, margin {reading.margin:+.3g}"
    found = f"{reading.name} {measured(reading.value, reading.unit)}"
    return f"{where}{found}, {limit}, {clause.count} of {clause.expected}"


def _batches(clauses: Sequence[ClauseVerdict]) -> str:
    sizes = [str(clause.batch) for clause in clauses if clause.batch is not None]
    return f" at batch size {', '.join(sizes)}" if sizes else ""


def _relative_margin(clause: ClauseVerdict) -> float:
    return clause.tightest.relative_margin if clause.tightest else 0.0
