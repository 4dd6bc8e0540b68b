"""The result of a self-test as a table for the terminal."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from support.faults.record import Outcome, SelfTest
from support.report.terminal import visible

__all__ = ["render_selftest"]


def render_selftest(result: SelfTest, *, width: int, color: bool) -> str:
    """
    Render a self-test: a row for each fault, one for each clean run, what was not as it must be, and the catch rate.

    Parameters
    ----------
    result : SelfTest
        What to show.
    width : int
        Columns of the terminal.
    color : bool
        Whether to write colour codes.
    """
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False, emoji=False
    )
    if result.faults:
        console.print(_faults(result))
    if result.clean_runs:
        console.print(_clean_runs(result))
    for outcome in result.faults:
        if not outcome.caught:
            console.print(_plain(_missed(outcome)), style="bold red", soft_wrap=True)
    failed = result.caught < len(result.faults) or result.false_alarms
    console.print(f"[{'bold red' if failed else 'green'}]{_plain(result.line)}[/]", soft_wrap=True)
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=name != "must point at")
    table.add_column("s", justify="right", no_wrap=True)
    return table


def _faults(result: SelfTest) -> Table:
    table = _table("Faults", "step", "fault", "must turn red", "must point at", "")
    for outcome in result.faults:
        state = "[green]caught[/]" if outcome.caught else "[bold red]MISSED[/]"
        cells = [_plain(text) for text in (outcome.step, outcome.fault, outcome.expected, outcome.suspect)]
        table.add_row(*cells, state, f"{outcome.seconds:.1f}")
    return table


def _clean_runs(result: SelfTest) -> Table:
    table = _table("Clean runs", "run", "images", "batch sizes", "clauses", "")
    for run in result.clean_runs:
        sizes, red = ", ".join(map(str, run.batch_sizes)), ", ".join(run.red)
        state = f"[bold red]{_plain(red)}[/]" if red else "[green]accepted[/]"
        table.add_row(_plain(run.name), str(run.images), sizes, str(run.clauses), state, f"{run.seconds:.1f}")
    return table


def _missed(outcome: Outcome) -> str:
    found = f"{outcome.word} {outcome.reason}".strip()
    pointed = f", first suspect: {outcome.found_suspect}" if outcome.found_suspect else ""
    lines = [
        f"MISSED  {outcome.fault}: {outcome.corrupts}",
        f"    must be {outcome.expected}, pointing at {outcome.suspect!r}; is {found}{pointed}",
        *(f"    {line}" for finding in outcome.findings for line in finding.splitlines()),
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return escape("\n".join(visible(line) for line in text.splitlines()))
