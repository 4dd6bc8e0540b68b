"""Kill the gate at random moments, and see that what comes after is right."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping

import psutil

from support.errors import ContractViolationError
from support.trials.gate import Ended, Gate, Say, require_same, undisturbed

__all__ = ["kill_gates"]

#: Kills in a row after which a run is left alone; then a new store begins.
KILLS_IN_A_ROW = 6
#: What may hit a process: the kernel alone, the kernel with everything of the session, a user, a scheduler of jobs.
BLOWS: Mapping[str, float] = {"SIGKILL": 0.4, "SIGKILL to all": 0.2, "SIGINT": 0.2, "SIGTERM": 0.2}


def kill_gates(gate: Gate, kills: int, seed: int, say: Say) -> str:
    """
    Kill the gate so many times, at moments spread evenly over a cold run, and let runs end in between.

    A run that ends before its moment, or that comes after some kills in a row, must give verdict, readings and store of
    a run nothing happened to; then the next store begins.

    Parameters
    ----------
    gate : Gate
        What to kill.
    kills : int
        How many times.
    seed : int
        Of the moments and blows.
    say : callable
        Told of every run.

    Returns
    -------
    summary : str
        Counts and times.

    Raises
    ------
    ContractViolationError
        If a run differs from the undisturbed one, or leaves something behind.
    ToolError
        If the undisturbed run does not end as it must, or a process outlives its session.
    """
    chance, start = random.Random(seed), time.monotonic()  # noqa: S311 - no secret
    first, kept = undisturbed(gate, say)
    done, in_a_row, completed, shortest = Counter[str](), 0, 0, first.seconds
    while done.total() < kills or in_a_row:
        spared = in_a_row == KILLS_IN_A_ROW or done.total() == kills
        # With what earlier runs have built a run is shorter.
        ended = gate.run(killer=None if spared else _killer(chance, shortest if in_a_row else first.seconds))
        if ended.killed:
            done[ended.killed] += 1
            in_a_row += 1
            _require_no_verdict(ended, first)
            say(f"kill {done.total()} of {kills}: {ended.killed}")
        else:
            require_same(gate, ended, first, kept)
            completed, in_a_row, shortest = completed + 1, 0, min(shortest, ended.seconds)
            say(f"run {completed} completed after {ended.seconds:.0f} s: {ended.line}")
            gate.renew()
    blows = ", ".join(f"{count} {name}" for name, count in sorted(done.items()))
    return (
        f"{done.total()} kills ({blows}) of {gate.chip}, {completed} runs completed in between, in "
        f"{(time.monotonic() - start) / 60:.1f} min: 0 wrong verdicts, 0 stores to repair, nothing left behind"
    )


def _killer(chance: random.Random, seconds: float) -> Callable[[psutil.Process], str]:
    moment = time.monotonic() + chance.uniform(0, seconds)
    (blow,) = chance.choices(list(BLOWS), list(BLOWS.values()))

    def kill(process: psutil.Process) -> str:
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(max(0.0, moment - time.monotonic()))
            return ""
        family = [process, *(process.children(recursive=True) if blow.endswith("all") else ())]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.Signals[blow.split()[0]])
        return blow

    return kill


def _require_no_verdict(ended: Ended, first: Ended) -> None:
    # A signal may come when all is measured already; a status of 0 then belongs to a whole run. Its line need not be
    # the last: Python warns of a signal that it meets while it tidies up.
    if ended.status == 0 and first.line not in ended.output.splitlines():
        raise ContractViolationError(f"after {ended.killed} the status is 0:\n{ended.output[-2000:]}")
