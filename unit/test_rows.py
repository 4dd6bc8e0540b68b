from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from perf.rows import ROUNDS, Row

CAPSYS = SimpleNamespace(disabled=nullcontext)


def judged(row, figures):
    given = iter(figures)
    row.judge(CAPSYS, lambda: (next(given), "a detail"))
    return len(figures) - len(list(given))


@pytest.mark.parametrize(
    ("row", "figure", "said"),
    [
        (Row("speed", 15, "times", 10, at_least=True), 20, "[met] speed: 20 times (budget >= 15, margin +33%)"),
        (Row("speed", 15, "times", 10, at_least=True), 12, "[MISSED] speed: 12 times (budget >= 15, margin -20%)"),
        (Row("time", 2, "s", 8), 1, "[met] time: 1 s (budget <= 2, margin +50%)"),
        (Row("time", 2, "s", 8), 2, "[met] time: 2 s (budget <= 2, margin +0%)"),
        (Row("time", 2, "s", None), 100, "[MISSED] time: 100 s (budget <= 2, margin -4900%)"),
    ],
)
def test_a_row_tells_figure_budget_and_margin(row, figure, said, capsys):
    judged(row, [figure] * ROUNDS)
    assert capsys.readouterr().out.startswith(f"\n{said}")


@pytest.mark.parametrize(
    ("row", "figure"), [(Row("speed", 15, "times", 10, at_least=True), 9.9), (Row("time", 2, "s", 8), 8.1)]
)
def test_what_noise_cannot_explain_fails(row, figure):
    with pytest.raises(AssertionError, match=f"{row.what}: {figure} {row.unit}, fails beyond {row.fails}"):
        judged(row, [figure] * ROUNDS)


@pytest.mark.parametrize(("figures", "measured"), [([1], 1), ([2.1, 1], 2), ([2.1, 2.2, 2.3, 1], 3), ([3.1, 1], 1)])
def test_a_near_miss_is_measured_again_and_a_hopeless_one_is_not(figures, measured, capsys):
    assert judged(Row("time", 2, "s", 8), figures) == measured
    assert f"time: {min(figures[:measured])} s" in capsys.readouterr().out
