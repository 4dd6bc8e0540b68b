"""The pages that go into a bundle."""

from __future__ import annotations

from support.evidence.bundle import Bundle
from support.report.html import render_html
from support.report.markdown import render_markdown
from support.report.page import page_of

__all__ = ["HTML", "MARKDOWN", "write_pages"]

HTML, MARKDOWN = "report.html", "report.md"


def write_pages(bundle: Bundle) -> None:
    """
    Write ``report.html`` and ``report.md`` into the folder of a bundle that is not sealed yet.

    Parameters
    ----------
    bundle : Bundle
        As `support.evidence.bundle.write_bundle` hands it over, with its pictures in place.
    """
    page = page_of(bundle)
    (bundle.folder / HTML).write_text(render_html(page), encoding="utf-8")
    (bundle.folder / MARKDOWN).write_text(render_markdown(page), encoding="utf-8")
