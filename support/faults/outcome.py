"""What a self-test found, as a record for the evidence."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from support.faults.bench import Bench
from support.faults.fault import Fault, Step
from support.faults.worlds import CHECKOUT
from support.verdict import ClauseVerdict, Word, failure

__all__ = ["CleanRun", "Outcome", "SelfTest", "examined", "selftest", "suite_code"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Outcome(_Record):
    """
    What became of one fault.

    `expected` is the clause that had to turn red, with its batch size and how; `suspect` what it had to point at.
    `word`, `reason`, `found_suspect` and `findings` are what it gave. `caught` says whether they agree.
    """

    fault: str
    step: Step
    corrupts: str
    expected: str
    suspect: str
    word: Word
    reason: str
    found_suspect: str
    findings: tuple[str, ...]
    caught: bool
    seconds: float


class CleanRun(_Record):
    """A run without a fault; `red` names every clause that was not accepted all the same."""

    name: str
    seed: int
    images: int
    batch_sizes: tuple[int, ...]
    clauses: int
    red: tuple[str, ...]
    seconds: float


class SelfTest(_Record):
    """
    A whole self-test: every fault that was put in, and every clean run.

    `code` is the digest of the suite's code and specs; a self-test says nothing about any other. `ended` is UTC.
    """

    schema_version: Literal[1] = 1
    code: str
    ended: dt.datetime
    full: bool
    faults: tuple[Outcome, ...]
    clean_runs: tuple[CleanRun, ...]

    @property
    def caught(self) -> int:
        """Faults that turned the named clause red, with the right suspect."""
        return sum(outcome.caught for outcome in self.faults)

    @property
    def false_alarms(self) -> int:
        """Clean runs in which a clause was not accepted."""
        return sum(bool(run.red) for run in self.clean_runs)

    @property
    def line(self) -> str:
        """The result as one line."""
        rate = f" ({100 * self.caught / len(self.faults):.1f} %)" if self.faults else ""
        return (
            f"self-test: {self.caught} of {len(self.faults)} faults caught{rate}, "
            f"{self.false_alarms} of {len(self.clean_runs)} clean runs with a false alarm"
        )


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


def suite_code() -> str:
    """SHA-256 over every module of ``support/`` and every spec: what a self-test has tested."""
    digest = hashlib.sha256()
    for path in sorted([*CHECKOUT.glob("support/**/*.py"), *CHECKOUT.glob("acceptance/*.toml")]):
        digest.update(path.relative_to(CHECKOUT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def selftest(faults: Sequence[Outcome], clean_runs: Sequence[CleanRun], *, full: bool) -> SelfTest:
    """Sum up a self-test that has just ended."""
    now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
    return SelfTest(code=suite_code(), ended=now, full=full, faults=tuple(faults), clean_runs=tuple(clean_runs))
