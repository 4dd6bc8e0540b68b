"""Texts nobody has vouched for, made fit to be shown."""

from __future__ import annotations

__all__ = ["measured", "number", "shortened", "visible"]


def visible(text: str) -> str:
    r"""
    Show characters that act instead of being seen: escapes, line breaks, marks that turn the direction of writing.

    Examples
    --------
    >>> visible("a\x1b[31m\n")
    'a\\x1b[31m\\n'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shortened(text: str, length: int) -> str:
    """
    Show a text as `visible`, cut to a number of characters.

    Examples
    --------
    >>> shortened("crosswalk", 6)
    'cross…'
    """
    seen = visible(text)
    return seen if len(seen) <= length else f"{seen[: length - 1]}…"


def number(value: float) -> str:
    """
    Write a number with four significant digits, whole ones in full.

    Examples
    --------
    >>> number(5000.0), number(33.26401), number(float("nan"))
    ('5000', '33.26', 'nan')
    """
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"


def measured(value: float, unit: str) -> str:
    """
    Write a number with its unit; a count needs none.

    Examples
    --------
    >>> measured(0.25, "px"), measured(3.0, "count")
    ('0.25 px', '3')
    """
    return number(value) if unit == "count" else f"{number(value)} {unit}"
