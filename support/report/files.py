"""The pages that go into a bundle, and those of a verdict over several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from support.artifacts import disk_error
from support.evidence.bundle import Bundle
from support.report.html import render_html
from support.report.markdown import render_markdown
from support.report.page import Page, joined_page, page_of
from support.verdict import ReleaseVerdict

__all__ = ["HTML", "MARKDOWN", "write_pages", "write_verdict_pages"]

HTML, MARKDOWN = "report.html", "report.md"


def write_pages(bundle: Bundle) -> None:
    """
    Write ``report.html`` and ``report.md`` into the folder of a bundle that is not sealed yet.

    Parameters
    ----------
    bundle : Bundle
        As `support.evidence.bundle.write_bundle` hands it over, with its pictures in place.
    """
    _write(bundle.folder, page_of(bundle))


def write_verdict_pages(folder: Path, bundles: Sequence[Bundle], verdict: ReleaseVerdict) -> None:
    """
    Write the pages of a verdict that was reached again, or over several bundles; they are not sealed.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    bundles : sequence of Bundle
        What was judged.
    verdict : ReleaseVerdict
        How.

    Raises
    ------
    NoSpaceError, BuildFailedError
        If the pages cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, joined_page(bundles, verdict))
    except OSError as error:
        for name in (HTML, MARKDOWN):  # half a page
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        raise disk_error(error, "writing the report", folder) from error


def _write(folder: Path, page: Page) -> None:
    (folder / HTML).write_text(render_html(page), encoding="utf-8")
    (folder / MARKDOWN).write_text(render_markdown(page), encoding="utf-8")
