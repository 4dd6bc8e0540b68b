"""The only place where a number becomes a decision."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict

from support.clauses import CATALOGUE, RUNG_CLAUSE
from support.errors import ContractViolationError, RejectedEarlyError, SuiteError
from support.spec import Clause, Limit

__all__ = [
    "EXIT_STATUS",
    "REASONS",
    "ClauseVerdict",
    "Measurement",
    "Reading",
    "ReleaseVerdict",
    "Word",
    "failure",
    "judge",
    "outside",
    "release_verdict",
    "rounded_half_up",
]

Word = Literal["accepted", "rejected", "undetermined"]

#: Exit status of a session asked for a verdict. pytest owns 0 to 6; a unit test watches that 10 stays free.
EXIT_STATUS: Mapping[Word, int] = MappingProxyType({"accepted": 0, "rejected": 1, "undetermined": 10})

#: Every reason of an undetermined clause, and what the reader can do about it.
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "no-device": "the chip asked for is not on this host: run where it is, or use --chip cpu",
        "wrong-device": "another device is here: check --chip and --device-id",
        "busy-device": "the device is in use: stop the other job and run again",
        "device-lost": "the device or its runtime died during the run: see the last messages, check the driver",
        "no-data": "images, annotations or weights are missing: give --coco-root=DIR, --checkpoint=FILE",
        "wrong-data": "the data are not those the spec pins: the message names the first difference",
        "no-reference": "nothing to compare with: give --checkpoint=FILE (with torch) or --reference=DIR",
        "no-baseline": "no accepted saved run of this machine: run with --benchmark-autosave first",
        "no-timing": "no usable timing samples: look for a failed or empty pass above",
        "build-failed": "a stage could not build its artifact: its log is named in the message",
        "tool-error": "an external tool or library failed: its message is above",
        "timeout": "a step took longer than the spec's time-out",
        "no-space": "a disk is full or too small: free space or give --artifacts=DIR on another disk",
        "interrupted": "the session was stopped: run again, finished artifacts are kept",
        "internal-error": "the suite itself failed, which says nothing about the model: please report the traceback",
        "not-serial": "throughput cannot be measured beside parallel workers: run without -n",
        "partial": "not everything was measured: run without --limit, --batch-sizes, -k, -x and deselection",
        "rejected-early": "an early rung rejected this batch size: see score_agreement; --rungs=off measures all",
        "simulated": "the device was simulated: run on hardware",
        "inconclusive": "the noise is larger than the margin: run again on a quiet machine",
        "implausible": "the figure is faster than the hardware can be: check for cached or skipped work",
        "waived": "a clause was waived, which is never an acceptance",
        "not-a-release": "--release asks for real hardware, a published spec, full data and no override",
    }
)


def rounded_half_up(value: float, decimals: int) -> float:
    """
    Round as published tables do: halves away from zero, on the decimal digits of the number.

    Python's own ``round`` goes to the even neighbour, which would turn 33.25 into 33.2.

    Examples
    --------
    >>> rounded_half_up(33.25, 1), rounded_half_up(33.349999, 1)
    (33.3, 33.3)
    """
    return float(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP))


@dataclass(frozen=True)
class Measurement:
    """
    What was measured for one clause.

    Parameters
    ----------
    values : mapping of str to float
        One number for every quantity of the clause, in the unit of the catalogue.
    count, expected : int
        How many items were compared and how many the full data set has. Fewer than expected is *partial*.
    findings : tuple of str
        What stands behind the numbers, worst first.
    suspect : str or callable, optional
        First thing to look at if the clause is red; the spec's own suspect otherwise. A function is asked only then.
    informative : bool
        Measured and shown, but not deciding.
    variant : str
        Which of the clause's variant quantities the values belong to.
    doubt : str
        Why the numbers are not to be believed, one of `REASONS`: then the clause is undetermined whatever they are.
    optimistic : mapping of str to float
        For values that are the bad end of a confidence interval, its good end: a limit between the two is neither
        kept nor broken, but *inconclusive*.
    origin : mapping of str to str
        What was measured, such as the hash of a model.
    """

    values: Mapping[str, float]
    count: int
    expected: int
    findings: tuple[str, ...] = ()
    suspect: str | Callable[[], str] = ""
    informative: bool = False
    variant: str = ""
    doubt: str = ""
    optimistic: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)


class _Record(BaseModel):
    # As strings, because JSON has no NaN and a number read back from null would be no number.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Reading(_Record):
    """One measured number beside its limit; `margin` is positive inside the limit."""

    name: str
    value: float
    unit: str
    direction: Literal["min", "max"]
    limit: float
    margin: float
    inside: bool

    @property
    def relative_margin(self) -> float:
        """Margin as a part of the limit, so that readings can be ranked; of a limit of 0 the margin itself."""
        if not math.isfinite(self.margin):
            return -math.inf
        return self.margin / abs(self.limit) if self.limit else self.margin


class ClauseVerdict(_Record):
    """The verdict of one clause at one batch size; travels between processes as JSON."""

    clause: str
    batch: int | None = None
    word: Word
    reason: str = ""
    readings: tuple[Reading, ...] = ()
    count: int = 0
    expected: int = 0
    findings: tuple[str, ...] = ()
    suspect: str = ""
    informative: bool = False
    origin: Mapping[str, str] = {}

    @property
    def label(self) -> str:
        """Clause and batch as one name, for example ``coverage[bs4]``."""
        return self.clause if self.batch is None else f"{self.clause}[bs{self.batch}]"

    @property
    def tightest(self) -> Reading | None:
        """The reading that is outside its limit, or the one relatively nearest to it."""
        return min(self.readings, key=lambda reading: reading.relative_margin, default=None)


class ReleaseVerdict(_Record):
    """The one verdict of a session."""

    word: Word
    scope: Literal["gate", "throughput", "replay"]
    subject: str
    is_release: bool
    reasons: tuple[str, ...]
    clauses: tuple[ClauseVerdict, ...]

    @property
    def exit_status(self) -> int:
        """Exit status of the session."""
        return EXIT_STATUS[self.word]

    @property
    def line(self) -> str:
        """The verdict as one line, always with its scope."""
        scope = "" if self.scope == "gate" else f"{self.scope} of "
        why = f": {', '.join(self.reasons)}" if self.reasons else ""
        return f"{self.word}: {scope}{self.subject}{'' if self.is_release else ' (not a release)'}{why}"


def judge(name: str, clause: Clause, measurement: Measurement, *, batch: int | None = None) -> ClauseVerdict:
    """
    Compare a measurement with the limits of its clause.

    A measurement of fewer items than expected is undetermined (``partial``) whatever its value, since a figure over a
    part of the data says nothing about the figure over all of them. A number that is not finite is a fault of the
    suite, not of the model.

    Raises
    ------
    ValueError
        If the measurement does not give exactly the quantities of the clause (and of its variant), an optimistic value
        of anything else, or a doubt that is no reason.
    """
    quantities = CATALOGUE[name].quantities
    wanted = [key for key in clause.limits if quantities[key].variant in ("", measurement.variant)]
    if measurement.values.keys() != set(wanted):
        raise ValueError(f"{name}: measured {sorted(measurement.values)}, the clause has {sorted(wanted)}")
    if not measurement.optimistic.keys() <= set(wanted):
        raise ValueError(f"{name}: optimistic {sorted(measurement.optimistic)}, the clause has {sorted(wanted)}")
    if measurement.doubt not in ("", *REASONS):
        raise ValueError(f"{name}: {measurement.doubt!r} is no reason")
    readings = tuple(_reading(key, measurement.values[key], clause.limits[key]) for key in wanted)
    hopes = tuple(
        _reading(key, measurement.optimistic.get(key, measurement.values[key]), clause.limits[key]) for key in wanted
    )
    word, reason = _decide(readings, hopes, measurement)
    return ClauseVerdict(
        clause=name,
        batch=batch,
        word=word,
        reason=reason,
        readings=readings,
        count=measurement.count,
        expected=measurement.expected,
        findings=measurement.findings,
        suspect=_suspect(measurement, clause) if word == "rejected" else "",
        informative=measurement.informative,
        origin=dict(measurement.origin),
    )


def outside(limits: Mapping[str, Limit], values: Mapping[str, float]) -> tuple[Reading, ...]:
    """Compare measured numbers with limits that belong to no clause; returns what is outside, in the limits' order."""
    readings = (_reading(name, values[name], limit) for name, limit in limits.items())
    return tuple(reading for reading in readings if not reading.inside)


def _suspect(measurement: Measurement, clause: Clause) -> str:
    found = measurement.suspect() if callable(measurement.suspect) else measurement.suspect
    return found or clause.suspect


def _reading(name: str, value: float, limit: Limit) -> Reading:
    compared = value if limit.rounding is None or not math.isfinite(value) else rounded_half_up(value, limit.rounding)
    margin = compared - limit.number if limit.direction == "min" else limit.number - compared
    return Reading(
        name=name,
        value=value,
        unit=limit.unit,
        direction=limit.direction,
        limit=limit.number,
        margin=margin,
        inside=margin >= 0,
    )


def _decide(readings: Sequence[Reading], hopes: Sequence[Reading], measurement: Measurement) -> tuple[Word, str]:
    if not readings or not all(math.isfinite(reading.value) for reading in readings):
        return "undetermined", "internal-error"
    # The good end of an interval may be infinite, but not no number.
    if any(math.isnan(hope.value) for hope in hopes):
        return "undetermined", "internal-error"
    if measurement.count <= 0 or measurement.count < measurement.expected:
        return "undetermined", "partial"
    if measurement.doubt:
        return "undetermined", measurement.doubt
    if all(reading.inside for reading in readings):
        return "accepted", ""
    return ("undetermined", "inconclusive") if all(reading.inside for reading in hopes) else ("rejected", "")


def failure(name: str, error: BaseException, *, batch: int | None = None) -> ClauseVerdict:
    """
    Turn an error that kept a clause from being measured into its verdict.

    An artifact that violates its contract is *rejected*, and so is the clause that an early rung judged; every other
    error leaves the clause undetermined, with ``internal-error`` for anything the suite did not foresee.
    """
    rejecting: tuple[type[SuiteError], ...] = (ContractViolationError,)
    if name == RUNG_CLAUSE:
        rejecting = (ContractViolationError, RejectedEarlyError)
    if isinstance(error, rejecting):
        return ClauseVerdict(clause=name, batch=batch, word="rejected", findings=(str(error),), suspect=error.remedy)
    reason = _reason(error)
    text = str(error) if isinstance(error, SuiteError) else f"{type(error).__name__}: {error}"
    return ClauseVerdict(clause=name, batch=batch, word="undetermined", reason=reason, findings=(text,))


def _reason(error: BaseException) -> str:
    if isinstance(error, SuiteError) and error.reason in REASONS:
        return error.reason
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        return "no-space"
    return "internal-error"


def release_verdict(
    verdicts: Iterable[ClauseVerdict],
    required: Iterable[tuple[str, int | None]],
    *,
    scope: Literal["gate", "throughput", "replay"],
    subject: str,
    session_reasons: Iterable[str] = (),
    is_release: bool = False,
) -> ReleaseVerdict:
    """
    Combine clause verdicts into the verdict of the session: the worst of all.

    Parameters
    ----------
    verdicts : iterable of ClauseVerdict
        What was measured; a clause judged more than once counts with its worst verdict, and one that decides before
        one that only informs.
    required : iterable of (clause name, batch size or None)
        What had to be measured. A required clause without a verdict is undetermined, so nothing that keeps a test from
        running can make a session green; an empty required set is never accepted.
    session_reasons : iterable of str
        Reasons of the session as a whole, such as ``interrupted``.
    """
    worst: dict[tuple[str, int | None], ClauseVerdict] = {}
    for verdict in verdicts:
        key = (verdict.clause, verdict.batch)
        if key not in worst or _weight(verdict) > _weight(worst[key]):
            worst[key] = verdict
    wanted = tuple(required)
    session = tuple(dict.fromkeys(session_reasons))
    # Only what stops a session explains why a clause was not measured.
    absent = next((reason for reason in session if reason in _STOPPING), "partial")
    for name, batch in wanted:
        worst.setdefault((name, batch), ClauseVerdict(clause=name, batch=batch, word="undetermined", reason=absent))
    clauses = tuple(sorted(worst.values(), key=_table_order))
    deciding = [verdict for verdict in clauses if not verdict.informative]
    reasons = tuple(
        dict.fromkeys(
            [*session, *(v.reason for v in deciding if v.reason), *([] if wanted and deciding else ["partial"])]
        )
    )
    word: Word = max((v.word for v in deciding), key=lambda item: _RANK[item], default="undetermined")
    if word == "accepted" and reasons:
        word = "undetermined"
    return ReleaseVerdict(
        word=word, scope=scope, subject=subject, is_release=is_release, reasons=reasons, clauses=clauses
    )


_STOPPING = ("interrupted", "internal-error", "no-space")
_RANK: Mapping[str, int] = MappingProxyType({"accepted": 0, "undetermined": 1, "rejected": 2})
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_ORDER = MappingProxyType({name: place for place, name in enumerate(CATALOGUE)})


def _weight(verdict: ClauseVerdict) -> tuple[bool, int]:
    return not verdict.informative, _RANK[verdict.word]


def _table_order(verdict: ClauseVerdict) -> tuple[int, str, int]:
    return _ORDER.get(verdict.clause, len(_ORDER)), verdict.clause, verdict.batch or 0
