"""Run the gate many times at once on one store."""

from __future__ import annotations

import time

from support.trials.gate import Gate, Say, require_same, undisturbed

__all__ = ["run_gates_together"]


def run_gates_together(gate: Gate, sessions: int, say: Say) -> str:
    """
    Run the gate in many sessions at once that begin with an empty store, then once more.

    Each must give verdict and readings of a run that was alone, and together they must leave its store.

    Parameters
    ----------
    gate : Gate
        What to run.
    sessions : int
        How many at once.
    say : callable
        Told of every run.

    Returns
    -------
    summary : str
        Counts and times.

    Raises
    ------
    ContractViolationError, ToolError
        As `kill_gates`.
    """
    start = time.monotonic()
    first, kept = undisturbed(gate, say)
    for ended in (*gate.run_together(sessions), gate.run()):
        require_same(gate, ended, first, kept)
        say(f"{ended.seconds:.0f} s: {ended.line}")
    return (
        f"{sessions} sessions at once on one store of {gate.chip}, and one after them, in "
        f"{(time.monotonic() - start) / 60:.1f} min: 0 wrong verdicts, 0 stores to repair, nothing left behind"
    )
