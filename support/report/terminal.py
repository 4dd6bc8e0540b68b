"""The verdict as a table for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from support.verdict import REASONS, ClauseVerdict, Reading, ReleaseVerdict

__all__ = ["describe", "render"]

STYLE = {"accepted": "green", "rejected": "bold red", "undetermined": "yellow"}
SIGN = {"min": "≥", "max": "≤"}


def render(verdict: ReleaseVerdict, *, width: int, color: bool) -> str:
    """
    Render the release verdict: a table of clauses, what stands behind everything that is not accepted, the verdict.

    Rows of one clause whose batch sizes are all accepted are folded into the one nearest to its limit.

    Parameters
    ----------
    verdict : ReleaseVerdict
        What to show. Texts from files and tools are escaped.
    width : int
        Columns of the terminal.
    color : bool
        Whether to write colour codes.
    """
    console = Console(file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False, emoji=False)
    console.print(_table(verdict.clauses))
    for clause in verdict.clauses:
        if clause.word != "accepted" or clause.informative:
            console.print(_plain(describe(clause)), style=STYLE[clause.word])
    for reason in verdict.reasons:
        console.print(f"[yellow]{_plain(reason)}[/]: {_plain(REASONS[reason])}")
    console.print(f"[{STYLE[verdict.word]}]{_plain(verdict.line)}[/]")
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def describe(verdict: ClauseVerdict) -> str:
    """
    Say in words what a clause found: verdict, measured against required, count, worst findings, first suspect.

    Examples
    --------
    >>> print(describe(ClauseVerdict(clause="coverage", batch=4, word="undetermined", reason="no-data")))
    undetermined  coverage[bs4]: no-data
    """
    readings = "; ".join(_comparison(reading) for reading in verdict.readings if not reading.inside)
    head = ", ".join(part for part in (verdict.reason, readings, _count(verdict)) if part)
    lines = [f"{verdict.word}  {verdict.label}: {head}" if head else f"{verdict.word}  {verdict.label}"]
    lines += [f"    {line}" for finding in verdict.findings[:5] for line in finding.splitlines()]
    if verdict.suspect:
        lines.append(f"    first suspect: {verdict.suspect}")
    return "\n".join(lines)


def _table(clauses: Iterable[ClauseVerdict]) -> Table:
    table = Table(title="Release gate", title_justify="left", expand=True)
    for name in ("clause", "batch", "measured", "limit", "margin", "count", "verdict", "first suspect"):
        right = name in ("measured", "limit", "margin", "count")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "clause")
    for batch, clause in _rows(clauses):
        reading = clause.tightest
        word = clause.word + (f" ({clause.reason})" if clause.reason else "")
        table.add_row(
            _plain(clause.clause),
            batch,
            _plain(f"{reading.name} {_number(reading.value)}") if reading else "–",
            _plain(f"{SIGN[reading.direction]} {_number(reading.limit)} {reading.unit}") if reading else "–",
            f"{reading.margin:+.3g}" if reading else "–",
            f"{clause.count}/{clause.expected}" if clause.expected else "–",
            f"[{STYLE[clause.word]}]{'finding' if clause.informative else _plain(word)}[/]",
            _plain(clause.suspect),
        )
    return table


def _rows(clauses: Iterable[ClauseVerdict]) -> Iterator[tuple[str, ClauseVerdict]]:
    for _, group in groupby(clauses, key=lambda clause: (clause.clause, clause.word, clause.reason)):
        rows = list(group)
        if len(rows) > 1 and not rows[0].readings:
            yield _span(rows), rows[0]
        elif len(rows) > 1 and rows[0].word == "accepted":
            worst = min(rows, key=_relative)
            yield (
                f"{_span(rows)}, worst {worst.batch}" if len({row.readings for row in rows}) > 1 else _span(rows),
                worst,
            )
        else:
            yield from (("" if row.batch is None else str(row.batch), row) for row in rows)


def _span(rows: list[ClauseVerdict]) -> str:
    return f"{rows[0].batch}–{rows[-1].batch}"


def _relative(verdict: ClauseVerdict) -> float:
    reading = verdict.tightest
    return reading.margin / max(abs(reading.limit), 1e-12) if reading else 0.0


def _comparison(reading: Reading) -> str:
    limit = f"{SIGN[reading.direction]} {_number(reading.limit)}"
    return f"{reading.name} {_number(reading.value)} {reading.unit}, required {limit}"


def _count(verdict: ClauseVerdict) -> str:
    return f"{verdict.count} of {verdict.expected}" if verdict.expected else ""


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"


def _plain(text: str) -> str:
    """Escape markup and control characters: names come from files nobody has vouched for."""
    return escape("".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text))
