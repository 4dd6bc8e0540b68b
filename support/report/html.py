"""The report as one HTML file that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from support.report.page import Page
from support.report.pictures import COLOURS, SHOWN_LOST, SHOWN_SCORE
from support.report.text import shortened

__all__ = ["render_html"]

#: Characters of a name, so that none pushes the verdict out of sight, and of any other text.
NAME, LONGEST = 160, 2000
TEMPLATES = Path(__file__).resolve().parent / "templates"


def render_html(page: Page) -> str:
    """
    Write a report as HTML.

    Every text is escaped and shown as `support.report.text.visible` shows it; by its content security policy the page
    runs no script and loads nothing from elsewhere.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    # Drawings come from matplotlib, which has escaped the texts in them.
    environment.filters |= {"drawing": Markup, "data_uri": _data_uri, "short": _short}
    template = environment.get_template("report.html.j2")
    return template.render(page=page, colours=COLOURS, shown_score=SHOWN_SCORE, shown_lost=SHOWN_LOST)


def _shown(value: Any) -> Any:
    from markupsafe import Markup

    return shortened(value, LONGEST) if isinstance(value, str) and not isinstance(value, Markup) else value


def _short(text: str) -> str:
    return shortened(text, NAME)


def _data_uri(picture: bytes) -> Any:
    from markupsafe import Markup

    # No text, and so not to be cut.
    return Markup("data:image/jpeg;base64,") + base64.b64encode(picture).decode("ascii")
