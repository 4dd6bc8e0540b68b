import dataclasses

import pytest
from markdown_it import MarkdownIt

from support.report.markdown import code, render_markdown
from support.report.page import page_of
from unit.report.conftest import HOSTILE

PARSER = MarkdownIt("commonmark").enable("table")


def tokens(text):
    found = []
    for token in PARSER.parse(text):
        found += [token, *(token.children or [])]
    return found


def kinds(text):
    return [token.type for token in tokens(text)]


@pytest.fixture(scope="module")
def shown(page):
    return render_markdown(page)


def test_the_verdict_comes_first_and_the_margins_are_a_table(shown):
    assert shown.startswith("# ✓ accepted\n\n`shapes_d0 on cpu` (not a release)\n")
    cells = " | ".join(["✓ 0 (+0)"] * 6)
    assert f"| `coverage` | `missing` | `≤ 0 images` | {cells} |\n" in shown
    assert kinds(shown).count("table_open") == 9


def test_long_tables_are_cut(shown):
    assert "10 more rows are in `report.html`." in shown


def test_a_simulated_device_is_said_to_be_one(page):
    environment = page.document.environment.model_copy(update={"simulation": "310P3"})
    text = render_markdown(
        dataclasses.replace(page, document=page.document.model_copy(update={"environment": environment}))
    )
    assert "**Simulated: `310P3`. No hardware was measured.**" in text


def test_hostile_texts_are_shown_and_not_obeyed(spread):
    found = render_markdown(page_of(spread(list(HOSTILE.values()))))
    plain = render_markdown(page_of(spread([f"harmless {place}" for place in range(len(HOSTILE))])))
    assert not {"html_inline", "html_block", "link_open", "image", "fence", "code_block"} & set(kinds(found))
    assert all(char.isprintable() or char == "\n" for char in found)
    for kind in ("heading_open", "table_open", "tr_open", "td_open", "hr"):
        assert kinds(found).count(kind) == kinds(plain).count(kind)
    assert len(found) < 100_000


@pytest.mark.parametrize("text", ["`", "``a`", "a|b", " a ", "\\", "\\|", "<b>", "a`b``c```d"])
def test_a_code_span_holds_the_whole_text(text):
    row = f"| a |\n| --- |\n| {code(text)} |\n"
    inline = [token for token in tokens(row) if token.type == "code_inline"]
    assert [token.content.strip() for token in inline] == [text.replace("|", "\\x7c").strip()]


def test_long_texts_are_cut():
    assert len(code("x" * 5000)) == 402
