import math

import pytest

from support.report.text import measured, number, shortened, visible
from unit.report.conftest import HOSTILE


@pytest.mark.parametrize("text", [*HOSTILE.values(), "\ud800", "\u2066"])
def test_what_acts_is_shown_instead(text):
    assert visible(text).isprintable()
    visible(text).encode()


def test_what_is_harmless_stays_as_it_is():
    assert visible("naïve 猫 🐈 <b>") == "naïve 猫 🐈 <b>"


@pytest.mark.parametrize(("text", "shown"), [("abc", "abc"), ("abcd", "abcd"), ("abcde", "abc…"), ("\n\n\n", "\\n\\…")])
def test_long_texts_are_cut(text, shown):
    assert shortened(text, 4) == shown


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (-2.0, "-2"), (2.5e7, "2.5e+07"), (math.inf, "inf")])
def test_numbers_are_short(value, text):
    assert number(value) == text
    assert measured(value, "px") == f"{text} px"
