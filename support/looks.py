"""How often a comparison is looked at before it stays undecided."""

from __future__ import annotations

from collections.abc import Callable

from support.spec import Clause
from support.verdict import Measurement, judge

__all__ = ["settled"]


def settled(name: str, clause: Clause, look: Callable[[int], Measurement | None], *, most: int) -> Measurement:
    """
    Measure over one pass, then over two and so on, until the clause is decided or all looks are used.

    Only noise earns another look. Each is judged at a confidence that leaves the others their part of the error budget
    (`support.spec.Throughput.judged_confidence`), so that looking again does not make a wrong verdict likelier than the
    budget. The rule has no choice in it: the same samples always end at the same look, live and in a replay.

    Parameters
    ----------
    name : str
        The clause.
    clause : support.spec.Clause
        Its limits.
    look : callable
        Takes a number of passes, from 1 up, and gives the measurement over that many; None if no more can be had.
    most : int
        Looks in all.

    Returns
    -------
    measurement : Measurement
        The one that decided, or the last.
    """
    found = look(1)
    if found is None:
        raise ValueError(f"{name}: not even one pass to look at")
    for number in range(2, most + 1):
        if judge(name, clause, found).reason != "inconclusive":
            break
        further = look(number)
        if further is None:
            break
        found = further
    return found
