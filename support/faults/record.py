"""What a self-test found, as a record for the evidence; read where nothing about faults is known."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from support.plain_files import read_plain
from support.verdict import Word

__all__ = ["RECORD", "STEPS", "CleanRun", "Outcome", "SelfTest", "Step", "recorded_selftest", "suite_code"]

CHECKOUT = Path(__file__).resolve().parents[2]
#: Where a whole self-test leaves its record, in the store of artifacts.
RECORD = "selftest.json"
#: Ten times what 100 faults take.
MAX_BYTES = 2**20

Step = Literal[
    "checkpoint",
    "export",
    "simplify",
    "modify",
    "compile",
    "input",
    "batching",
    "backend",
    "decode",
    "category mapping",
    "scoring",
    "timing",
    "device",
    "store",
    "spec",
    "evidence",
    "session",
]
STEPS: tuple[Step, ...] = get_args(Step)


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
    ended: AwareDatetime
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


def suite_code() -> str:
    """SHA-256 over every module of ``support/`` and every spec: what a self-test has tested."""
    digest = hashlib.sha256()
    for path in sorted([*CHECKOUT.glob("support/**/*.py"), *CHECKOUT.glob("acceptance/*.toml")]):
        digest.update(path.relative_to(CHECKOUT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def recorded_selftest(store: Path) -> SelfTest | None:
    """Read the record that the last whole self-test left in a store of artifacts; None if there is none to be read."""
    try:
        return SelfTest.model_validate_json(read_plain(store / RECORD, MAX_BYTES))
    except (OSError, ValidationError):
        return None
