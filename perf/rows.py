"""A row of the suite's own budget: what it promises, and what a change must not cross on a busy machine either."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Row"]

#: A figure is measured again, up to so many times, until it keeps its budget: noise only ever makes it worse.
ROUNDS = 3
#: Unless it is so far off that the machine must be busy with something else, for longer than we would measure.
HOPELESS = 1.5


@dataclass(frozen=True)
class Row:
    """
    One line of the table.

    Parameters
    ----------
    what : str
        What is measured, and on what.
    budget : float
        What it is made for; printed.
    unit : str
        Of the figures.
    fails : float or None
        What fails the test: so far from the budget that noise does not reach it. None for a wall time that depends on
        who else uses the machine; such a test has another figure to fail on.
    at_least : bool
        Whether more is better.
    """

    what: str
    budget: float
    unit: str
    fails: float | None
    at_least: bool = False

    def judge(self, capsys: Any, measure: Callable[[], tuple[float, str]]) -> None:
        """Measure until the budget is kept, print the best figure, and fail only beyond what noise can do."""
        found = [measure()]
        while len(found) < ROUNDS and 0 < self._excess(found[-1][0]) < HOPELESS - 1:
            found.append(measure())
        figure, detail = (max if self.at_least else min)(found, key=lambda each: each[0])
        self._print(capsys, figure, [f"best of {len(found)}"] * (len(found) > 1) + [detail] * bool(detail))
        assert self.fails is None or figure == self.fails or (figure > self.fails) == self.at_least, (
            f"{self.what}: {figure:.3g} {self.unit}, fails beyond {self.fails:g}"
        )

    def _excess(self, figure: float) -> float:
        """How far a figure is beyond the budget, as a fraction of it; negative if it keeps it."""
        return (self.budget / figure if self.at_least else figure / self.budget) - 1

    def _print(self, capsys: Any, figure: float, details: list[str]) -> None:
        kept, sign = self._excess(figure) <= 0, ">=" if self.at_least else "<="
        margin = (figure - self.budget if self.at_least else self.budget - figure) / self.budget
        budget = f"budget {sign} {self.budget:g}, margin {margin:+.0%}"
        with capsys.disabled():
            print(  # noqa: T201 - the figure this benchmark is for
                f"\n[{'met' if kept else 'MISSED'}] {self.what}: {figure:.3g} {self.unit} ({budget})"
                + "".join(f"; {detail}" for detail in details)
            )
