"""One known fault: what is corrupted, which clause must turn red, and where it must point."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.faults.record import Step
from support.measuring import verdict_of
from support.results import Results
from support.run import Run
from support.verdict import REASONS, ClauseVerdict

if TYPE_CHECKING:
    from support.faults.bench import Bench

__all__ = ["Act", "Fault", "Registry"]

#: Puts the fault in, for as long as the stack is open, and gives the run that has it. Where no clause of a run could
#: show it, because the fault lies in what surrounds a run, gives the verdict that does.
Act = Callable[["Bench", ExitStack], Run | ClauseVerdict]


@dataclass(frozen=True)
class Fault:
    """
    A small, named corruption of one step.

    Parameters
    ----------
    name : str
        What ``--fault`` takes.
    step : str
        The step that is corrupted, one of `STEPS`.
    corrupts : str
        What is wrong, in a sentence.
    clause : str
        The clause that must turn red.
    batch : int or None
        The batch size at which it must, for a clause that is judged at each.
    suspect : str
        What its first suspect must name; where nothing could be measured, what its message must say.
    reason : str
        Reason of an undetermined clause; empty if the clause must be rejected.
    act : callable
        Puts it in.
    """

    name: str
    step: Step
    corrupts: str
    clause: str
    batch: int | None
    suspect: str
    reason: str
    act: Act

    @property
    def label(self) -> str:
        """The clause that must turn red, and how."""
        where = self.clause if self.batch is None else f"{self.clause}[bs{self.batch}]"
        return f"{where} {self.reason or 'rejected'}"

    def shown(self, bench: Bench) -> ClauseVerdict:
        """Put the fault in and judge its clause."""
        with ExitStack() as stack:
            patient = self.act(bench, stack)
            if isinstance(patient, ClauseVerdict):
                return patient
            return verdict_of(self.clause, Results(patient), self.batch)

    def explains(self, verdict: ClauseVerdict) -> bool:
        """Whether a verdict is red in the way this fault must show, and points at it."""
        if (verdict.clause, verdict.batch) != (self.clause, self.batch):
            return False
        if self.reason:
            pointed = "\n".join(verdict.findings)
            return (verdict.word, verdict.reason) == ("undetermined", self.reason) and self.suspect in pointed
        return verdict.word == "rejected" and self.suspect in verdict.suspect


class Registry:
    """The faults of one module, in its order; the name and the sentence of each are those of its function."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.faults: list[Fault] = []

    def add(
        self, clause: str, suspect: str, *, batch: int | None = None, reason: str = "", step: Step | None = None
    ) -> Callable[[Act], Act]:
        """
        Register a function as the act of a fault.

        Raises
        ------
        ValueError
            If the reason is none that a clause can have.
        """
        if reason and reason not in REASONS:
            raise ValueError(f"{reason!r} is no reason of an undetermined clause")

        def register(act: Act) -> Act:
            name = act.__name__.replace("_", "-")
            corrupts = (act.__doc__ or "").strip().removesuffix(".")
            self.faults.append(Fault(name, step or self._step, corrupts, clause, batch, suspect, reason, act))
            return act

        return register
