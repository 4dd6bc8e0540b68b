"""The report as Markdown, for the summary of a CI run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from support.report.explanations import Explanation
from support.report.page import Page, Section
from support.report.tables import MarginCell, MarginGroup, Table
from support.report.text import shortened

__all__ = ["code", "render_markdown"]

MARKS = {"accepted": "✓", "rejected": "✗", "undetermined": "?", "finding": "i"}
#: Characters of a text, so that nobody's text fills a summary.
LENGTH = 400
#: Rows of a table; the page has them all.
ROWS = 14


def render_markdown(page: Page) -> str:
    """Write a report as Markdown; texts of others appear as code only, where nothing in them acts."""
    return "\n".join(_blocks(page)) + "\n"


def code(text: str) -> str:
    r"""
    Write a text as a code span that also fits into a table.

    A bar would end a cell even inside a code span, so it is shown like a control character.

    Examples
    --------
    >>> code("<b>"), code("a`b|c"), code("")
    ('`<b>`', '`` a`b\\x7cc ``', '')
    """
    shown = shortened(text, LENGTH).replace("|", "\\x7c")
    if not shown.strip():
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if "`" in shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _blocks(page: Page) -> Iterator[str]:
    document, release = page.document, page.document.release
    yield f"# {MARKS[release.word]} {release.word}\n"
    yield f"{code(release.subject)}{'' if release.is_release else ' (not a release)'}\n"
    if document.simulated:
        yield f"**Simulated: {code(document.environment.simulation)}. No hardware was measured.**\n"
    yield f"{', '.join(f'{count} {word}' for word, count in page.tally.items() if count)}\n"
    yield from (f"- **{reason}**: {advice}" for reason, advice in page.reasons)
    yield ""
    for item in page.explanations:
        yield from _explanation(item)
    yield from (f"- {code(line)}" for line in page.cause)
    for waiver in document.waivers:
        yield f"- waived: {code(waiver.clause)}: {code(waiver.reason)} ({code(waiver.owner)}, until {waiver.expires})"
    yield "\n## Margins to every limit\n"
    yield from _margins(page.batch_margins, [f"batch {batch}" for batch in page.batches])
    yield from _margins(page.run_margins, ["run"])
    yield from _section("Where the points went: stage by stage", page.ladder)
    yield from _section("Accuracy against the reference", page.accuracy)
    yield from _section("Throughput", page.speed)
    yield "## Worst images\n"
    yield from (f"- {code('. '.join([item.caption.title, *item.caption.lines]))}" for item in page.worst)
    yield "\n## Environment\n"
    for table in page.environments:
        yield from _table(table, rows=len(table.rows))
    yield "## How to reproduce\n"
    yield from (f"- {code(command)}" for command in ("pytest --replay=FOLDER", *page.commands))


def _explanation(item: Explanation) -> Iterator[str]:
    yield f"- **{item.state}**: {code(item.heading)}"
    lines = [*item.points, *(line for finding in item.findings for line in finding.splitlines())]
    yield from (f"    - {code(line.strip())}" for line in lines if line.strip())
    if item.suspect:
        yield f"    - {'what to do' if item.state == 'undetermined' else 'first suspect'}: {code(item.suspect)}"


def _section(title: str, section: Section) -> Iterator[str]:
    yield f"## {title}\n"
    if section.note:
        yield f"{code(section.note)}\n"
    for table in section.tables:
        yield from _table(table)


def _margins(groups: Sequence[MarginGroup], heads: Sequence[str]) -> Iterator[str]:
    if not groups:
        return
    yield f"| clause | quantity | limit | {' | '.join(heads)} |"
    yield f"| --- | --- | --- |{' ---: |' * len(heads)}"
    for group in groups:
        for row in group.rows:
            cells = " | ".join(_cell(cell) for cell in row.cells)
            yield f"| {code(group.clause)} | {code(row.quantity)} | {code(row.limit)} | {cells} |"
    yield ""


def _cell(cell: MarginCell) -> str:
    if not cell.state:
        return ""
    measured = f"{cell.value} ({cell.margin})" if cell.value else ""
    return " ".join(part for part in (MARKS[cell.state], measured, code(cell.reason)) if part)


def _table(table: Table, *, rows: int = ROWS) -> Iterator[str]:
    yield f"{table.caption}:\n"
    yield f"| {' | '.join(code(cell) for cell in table.head)} |"
    yield f"|{' --- |' * table.words}{' ---: |' * (len(table.head) - table.words)}"
    for row in table.rows[:rows]:
        yield f"| {' | '.join(code(cell) for cell in row)} |"
    if len(table.rows) > rows:
        yield f"\n{len(table.rows) - rows} more rows are in `report.html`."
    yield ""
