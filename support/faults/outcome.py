"""From a fault, or a whole self-test, to its record."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence

from support.faults.bench import Bench
from support.faults.fault import Fault
from support.faults.record import CleanRun, Outcome, SelfTest, suite_code
from support.verdict import ClauseVerdict, failure

__all__ = ["examined", "selftest"]


def examined(fault: Fault, bench: Bench) -> tuple[Outcome, ClauseVerdict]:
    """Put a fault in and see what its clause says."""
    start = time.perf_counter()
    try:
        verdict = fault.shown(bench)
    except Exception as error:  # whatever nobody foresaw is a fault that nobody caught
        verdict = failure(fault.clause, error, batch=fault.batch)
    outcome = Outcome(
        fault=fault.name,
        step=fault.step,
        corrupts=fault.corrupts,
        expected=fault.label,
        suspect=fault.suspect,
        word=verdict.word,
        reason=verdict.reason,
        found_suspect=verdict.suspect,
        findings=verdict.findings[:3],
        caught=fault.explains(verdict),
        seconds=round(time.perf_counter() - start, 3),
    )
    return outcome, verdict


def selftest(faults: Sequence[Outcome], clean_runs: Sequence[CleanRun], *, full: bool) -> SelfTest:
    """Sum up a self-test that has just ended."""
    now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
    return SelfTest(code=suite_code(), ended=now, full=full, faults=tuple(faults), clean_runs=tuple(clean_runs))
