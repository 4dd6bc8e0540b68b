import math
import re

import pytest

from support.report.terminal import describe, render
from support.verdict import REASONS, ClauseVerdict, Reading, ReleaseVerdict, release_verdict

WIDE = 200


def reading(value, limit=0, name="missing", unit="images", direction="max"):
    margin = value - limit if direction == "min" else limit - value
    return Reading(
        name=name, value=value, unit=unit, direction=direction, limit=limit, margin=margin, inside=margin >= 0
    )


def verdict(clause="coverage", word="accepted", batch=4, **more):
    return ClauseVerdict(clause=clause, word=word, batch=batch, **{"count": 133, "expected": 133, **more})


def ap(value, **more):
    return reading(value, 33.264, name="ap", unit="AP points", direction="min", **more)


GREEN = [verdict(batch=batch, readings=(reading(0),)) for batch in (1, 4, 8)]
RED = verdict(
    word="rejected",
    readings=(reading(2), reading(0, name="surplus")),
    findings=("image 7 is missing", "image 9 is missing"),
    suspect="the last batch",
)
ABSENT = verdict(
    "pad_edit", "undetermined", None, reason="no-data", findings=("no folder\n  required: JPEGs",), count=0
)


def shown(*clauses, width=WIDE, color=False, **more):
    required = [(clause.clause, clause.batch) for clause in clauses]
    release = release_verdict(clauses, required, scope="gate", subject="d0 on cpu", **more)
    return render(release, width=width, color=color)


def rows(text):
    """Split the rows of the table into their cells."""
    lines = text.splitlines()
    first = next(place for place, line in enumerate(lines) if "──" in line) + 1
    end = next(place for place in range(first, len(lines)) if not lines[place].strip())
    return [re.split(r"\s{2,}", line.strip()) for line in lines[first:end]]


# -- what a clause found -----------------------------------------------------------------------------------------------


def test_a_rejection_tells_measured_required_count_findings_and_suspect():
    assert describe(RED) == (
        "rejected  coverage[bs4]: missing 2 images, required ≤ 0, margin -2, 133 of 133\n"
        "    image 7 is missing\n"
        "    image 9 is missing\n"
        "    first suspect: the last batch"
    )


def test_every_reading_outside_its_limit_is_told_and_no_other():
    both = verdict(word="rejected", readings=(reading(2), reading(0, name="surplus"), reading(1, name="padded_scored")))
    first = describe(both).splitlines()[0]
    assert "missing 2 images, required ≤ 0, margin -2; padded_scored 1 images, required ≤ 0, margin -1" in first
    assert "surplus" not in first


def test_a_value_that_looks_like_its_limit_shows_how_far_outside_it_is():
    assert "ap 33.26 AP points, required ≥ 33.26, margin -0.001" in describe(
        verdict("accuracy_guide_drop", "rejected", readings=(ap(33.263),))
    )


def test_what_was_not_measured_tells_why():
    assert describe(ABSENT) == ("undetermined  pad_edit: no-data, 0 of 133\n    no folder\n      required: JPEGs")
    partial = verdict(word="undetermined", reason="partial", readings=(reading(0),), count=8)
    assert describe(partial) == "undetermined  coverage[bs4]: partial, 8 of 133"


def test_an_accepted_clause_needs_no_more_words():
    assert describe(verdict(count=0, expected=0)) == "accepted  coverage[bs4]"


def test_only_the_first_five_findings_are_told():
    text = describe(verdict(word="rejected", findings=tuple(f"finding {place}" for place in range(9))))
    assert [place for place in range(9) if f"finding {place}" in text] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_can_be_shown(value):
    broken = verdict(word="undetermined", reason="internal-error", readings=(reading(value),))
    assert describe(broken).startswith("undetermined  coverage[bs4]: internal-error")
    assert f"{value:.4g}" in shown(broken)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (5000.0, "5000"), (2.5e7, "2.5e+07"), (33.2639, "33.26"), (1e-10, "1e-10")]
)
def test_numbers_are_written_short(value, text):
    assert describe(verdict(word="rejected", readings=(reading(value, -1),))).startswith(
        f"rejected  coverage[bs4]: missing {text} images, required ≤ -1,"
    )


# -- the table ---------------------------------------------------------------------------------------------------------


def test_accepted_rows_are_folded_into_one():
    assert rows(shown(*GREEN)) == [["coverage", "1–8", "missing", "0", "≤ 0 images", "+0", "133/133", "accepted"]]


def test_folded_rows_show_the_batch_nearest_to_its_limit():
    aps = [verdict("accuracy_guide_drop", batch=batch, readings=(ap(value),)) for batch, value in ((1, 34), (8, 33.5))]
    (row,) = rows(shown(*aps))
    assert row[:4] == ["accuracy_guide_drop", "1–8, worst 8", "ap", "33.5"]


def test_a_rejected_row_is_never_folded_and_splits_the_others():
    found = [verdict(batch=batch, readings=(reading(0),)) for batch in (1, 4, 32, 64)]
    red = [RED.model_copy(update={"batch": batch}) for batch in (8, 16)]
    table = rows(shown(*found, *red))
    assert [(row[1], row[7]) for row in table] == [
        ("1–4", "accepted"),
        ("8", "rejected"),
        ("16", "rejected"),
        ("32–64", "accepted"),
    ]


def test_a_rejection_without_a_number_is_not_folded_either():
    violated = [verdict("graph_contract", "rejected", batch=batch, count=0, expected=0) for batch in (1, 4)]
    assert [row[1] for row in rows(shown(*violated))] == ["1", "4"]


def test_what_was_not_measured_is_folded_by_its_reason():
    missing = [
        verdict(word="undetermined", batch=batch, reason=reason, count=0)
        for batch, reason in ((1, "no-device"), (4, "no-device"), (8, "busy-device"))
    ]
    assert [(row[1], row[-1]) for row in rows(shown(*missing))] == [
        ("1–4", "undetermined (no-device)"),
        ("8", "undetermined (busy-device)"),
    ]


def test_different_inconclusive_figures_are_not_folded():
    figures = [
        verdict("throughput_same_chip", "undetermined", batch, reason="inconclusive", readings=(reading(value),))
        for batch, value in ((1, 1), (4, 2))
    ]
    assert [row[1] for row in rows(shown(*figures))] == ["1", "4"]


def test_a_finding_is_not_folded_under_what_decides():
    kinds = [verdict(batch=batch, readings=(reading(0),), informative=batch == 4) for batch in (1, 4)]
    assert [(row[1], row[-1]) for row in rows(shown(*kinds))] == [("1", "accepted"), ("4", "finding")]


def test_a_clause_of_the_whole_run_has_no_batch():
    assert rows(shown(verdict("dataset_pins", batch=None)))[0][:2] == ["dataset_pins", "–"]


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_verdict_is_the_last_line():
    assert shown(*GREEN).splitlines()[-1] == "accepted: d0 on cpu (not a release)"
    assert shown(*GREEN, RED.model_copy(update={"batch": 64})).splitlines()[-1].startswith("rejected: d0 on cpu")


def test_what_is_not_accepted_is_explained_below_the_table():
    text = shown(*GREEN, ABSENT, RED.model_copy(update={"batch": 64}))
    assert "rejected  coverage[bs64]: missing 2 images, required ≤ 0, margin -2" in text
    assert "undetermined  no-data: pad_edit" in text
    assert "required: JPEGs" in text
    assert REASONS["no-data"][:40] in text


def test_findings_are_explained_though_they_do_not_decide():
    finding = verdict("accuracy_measured_drop", "rejected", readings=(ap(33),), informative=True, findings=("quote",))
    text = shown(*GREEN, finding)
    assert text.splitlines()[-1].startswith("accepted")
    assert "finding" in text
    assert "    quote" in text


def test_a_finding_that_was_not_measured_is_explained_once():
    finding = verdict(word="undetermined", reason="partial", informative=True, findings=("the quote",), count=8)
    assert shown(*GREEN[:1], verdict(batch=8), finding).count("the quote") == 1


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_comes_with_advice(reason):
    text = shown(verdict(word="undetermined", reason=reason), width=1000)
    assert f"{reason}: {REASONS[reason]}" in text


def test_the_reasons_of_the_session_come_with_advice():
    assert f"interrupted: {REASONS['interrupted'][:30]}" in shown(*GREEN, session_reasons=["interrupted"])


def test_an_empty_verdict_can_be_shown():
    assert shown().splitlines()[-1] == "undetermined: d0 on cpu (not a release): partial"


@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_any_width_shows_verdict_and_clauses(width):
    text = shown(*GREEN, RED.model_copy(update={"batch": 64}), ABSENT, width=width)
    assert text.splitlines()[-1]
    assert "rejected" in text


def test_colour_is_written_only_where_it_is_wanted(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in shown(RED, color=False)
    monkeypatch.delenv("FORCE_COLOR")
    assert "\x1b[" in shown(RED, color=True)


# -- texts nobody has vouched for --------------------------------------------------------------------------------------

HOSTILE = {
    "markup": "[red]accepted[/red] [/] [link=https://example.org]x[/link]",
    "open markup": "[bold",
    "a backslash before markup": "\\[red]\\",
    "colours": "\x1b[31mred\x1b[0m",
    "a cleared screen": "\x1b[2J\x1b[H",
    "a new title": "\x1b]0;title\x07",
    "one byte of ANSI": "\x9b2J",
    "a line taken back": "rejected\raccepted",
    "backspaces": "rejected" + "\b" * 8 + "accepted",
    "text from right to left": "\u202edetpecca\u202c",
    "nothing to see": "\u200b\u2066\ufeff",
    "NUL": "a\x00b",
    "an emoji": ":skull: :warning:",
    "a lone surrogate": "\ud800",
}
LINES = "one\ntwo\r\nthree\u2028accepted: d0 on cpu"


def everywhere(text):
    return verdict(
        text,
        "rejected",
        readings=(reading(2, name=text, unit=text), reading(0)),
        findings=(text, f"image {text}.jpg"),
        suspect=text,
    )


def only_printable(text):
    return all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_are_shown_and_not_obeyed(text):
    table, words = shown(everywhere(text), width=2000), describe(everywhere(text))
    plain = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    assert only_printable(table)
    assert only_printable(words)
    assert table.count(plain) >= 7
    assert f"rejected  {plain}[bs4]: {plain} 2 {plain}, required" in words


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_subject_and_reason_are_shown_and_not_obeyed(monkeypatch, text):
    monkeypatch.setattr("support.report.terminal.REASONS", {text: text})
    clause = verdict(word="undetermined", reason=text)
    release = ReleaseVerdict(
        word="undetermined", scope="gate", subject=text, is_release=False, reasons=(text,), clauses=(clause,)
    )
    assert only_printable(render(release, width=2000, color=False))


def test_a_text_of_several_lines_cannot_pretend_to_be_the_verdict():
    lines = shown(everywhere(LINES), width=2000).splitlines()
    assert [line for line in lines if line.startswith("accepted")] == []
    assert lines[-1].startswith("rejected: d0 on cpu")
    assert [line for line in describe(everywhere(LINES)).splitlines() if line.startswith("accepted")] == []


def test_very_long_texts_keep_the_verdict_readable():
    long = "x" * 5000
    text = shown(everywhere(long), width=120)
    assert text.splitlines()[-1].startswith("rejected: d0 on cpu")
    table = text[: text.index("rejected  x")]
    assert max(len(line) for line in table.splitlines()) <= 120
