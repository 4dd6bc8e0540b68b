"""The verdict as a table for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from support.verdict import REASONS, ClauseVerdict, Reading, ReleaseVerdict

__all__ = ["describe", "render", "visible"]

STYLE = {"accepted": "green", "rejected": "bold red", "undetermined": "yellow"}
#: The clause whose findings are worth reading when all is well: where the AP comes from, stage by stage.
LADDER = "stage_ap"
SIGN = {"min": "≥", "max": "≤"}
SHORT = {"AP points": "AP"}


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
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False, emoji=False
    )
    console.print(_table(verdict.clauses))
    for style, text in _explanations(verdict.clauses):
        console.print("\n".join(map(_plain, text.splitlines())), style=style, soft_wrap=True)
    for reason in verdict.reasons:
        console.print(f"[yellow]{_plain(reason)}[/]: {_plain(REASONS[reason])}")
    # In one piece whatever the width: scripts read it.
    console.print(f"[{STYLE[verdict.word]}]{_plain(verdict.line)}[/]", soft_wrap=True)
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def describe(verdict: ClauseVerdict) -> str:
    """
    Say in words what a clause found: verdict, measured against required, count, worst findings, first suspect.

    Control characters are shown and not sent: names come from files nobody has vouched for.

    Examples
    --------
    >>> print(describe(ClauseVerdict(clause="coverage", batch=4, word="undetermined", reason="no-data")))
    undetermined  coverage[bs4]: no-data
    """
    readings = "; ".join(_comparison(reading) for reading in verdict.readings if not reading.inside)
    head = ", ".join(part for part in (verdict.reason, readings, _count(verdict)) if part)
    lines = [f"{verdict.word}  {verdict.label}{': ' if head else ''}{head}"]
    lines += [f"    {line}" for finding in verdict.findings[:5] for line in finding.splitlines()]
    if verdict.suspect:
        lines.append(f"    first suspect: {verdict.suspect}")
    return "\n".join(visible(line) for line in lines)


def _explanations(clauses: Sequence[ClauseVerdict]) -> Iterator[tuple[str, str]]:
    """Give what stands behind the rows: the ladder, rejections, and each cause of undetermined clauses once."""
    for clause in clauses:
        if clause.word == "rejected" or clause.informative:
            yield STYLE[clause.word], describe(clause)
        elif clause.clause == LADDER and clause.readings:
            yield "", "\n".join(clause.findings)
    causes: dict[tuple[str, str], list[str]] = {}
    for clause in clauses:
        if clause.word == "undetermined" and not clause.informative:
            # The findings of a measured clause are no cause of its being partial, but tell who waived it.
            told = not clause.readings or clause.reason == "waived"
            cause = "\n".join(clause.findings[:5]) if told else ""
            causes.setdefault((clause.reason, cause), []).append(clause.clause)
    for (reason, cause), names in causes.items():
        lines = [f"undetermined  {reason}: {', '.join(dict.fromkeys(names))}", *cause.splitlines()]
        yield STYLE["undetermined"], "\n    ".join(lines)


def _table(clauses: Sequence[ClauseVerdict]) -> Table:
    suspects = any(clause.suspect for clause in clauses)
    table = Table(title="Release gate", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("clause", "batch", "quantity"):
        table.add_column(name, no_wrap=True)
    for name in ("measured", "limit", "margin", "count"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    if suspects:
        table.add_column("first suspect")
    for batch, clause in _rows(clauses):
        cells = _cells(batch, clause)
        table.add_row(*cells, *([_plain(clause.suspect)] if suspects else []))
    return table


def _cells(batch: str, clause: ClauseVerdict) -> tuple[str, ...]:
    reading = clause.tightest
    word = _plain(("finding" if clause.informative else clause.word) + (f" ({clause.reason})" if clause.reason else ""))
    measured = ("–",) * 4
    if reading is not None:
        limit = f"{SIGN[reading.direction]} {_number(reading.limit)} {SHORT.get(reading.unit, _plain(reading.unit))}"
        measured = _plain(reading.name), _number(reading.value), limit, f"{reading.margin:+.3g}"
    return (
        _plain(clause.clause),
        batch,
        *measured,
        f"{clause.count}/{clause.expected}" if clause.expected else "–",
        f"[{STYLE[clause.word]}]{word}[/]",
    )


def _rows(clauses: Iterable[ClauseVerdict]) -> Iterator[tuple[str, ClauseVerdict]]:
    for (_, word, *_), group in groupby(clauses, key=_alike):
        rows = list(group)
        equal = len({row.readings for row in rows}) == 1
        if len(rows) > 1 and word != "rejected" and (equal or word == "accepted"):
            worst = min(rows, key=_relative_margin)
            yield f"{rows[0].batch}–{rows[-1].batch}{'' if equal else f', worst {worst.batch}'}", worst
        else:
            yield from (("" if row.batch is None else str(row.batch), row) for row in rows)


def _alike(verdict: ClauseVerdict) -> tuple[str, str, str, bool, bool]:
    return verdict.clause, verdict.word, verdict.reason, verdict.informative, bool(verdict.readings)


def _relative_margin(verdict: ClauseVerdict) -> float:
    reading = verdict.tightest
    return reading.relative_margin if reading else 0.0


def _comparison(reading: Reading) -> str:
    # The margin shows how far outside a value is that looks like its limit when it is printed.
    limit = f"{SIGN[reading.direction]} {_number(reading.limit)}, margin {reading.margin:+.3g}"
    return f"{reading.name} {_number(reading.value)} {reading.unit}, required {limit}"


def _count(verdict: ClauseVerdict) -> str:
    return f"{verdict.count} of {verdict.expected}" if verdict.expected else ""


def _number(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"


def _plain(text: str) -> str:
    return escape(visible(text))


def visible(line: str) -> str:
    """Show control characters of a line instead of sending them."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
