import dataclasses
import re
from html.parser import HTMLParser

import pytest

from support.report.html import render_html
from support.report.page import page_of
from support.report.text import shortened
from unit.report.conftest import HOSTILE

TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "main", "header", "nav", "section", "div", "span"),
    *("h1", "h2", "h3", "p", "b", "br", "a", "ul", "li", "code", "pre", "small", "details", "summary", "img"),
    *("figure", "figcaption", "table", "caption", "thead", "tbody", "tr", "th", "td"),
}
DRAWN = {"svg", "g", "path", "text", "tspan", "use", "defs", "clippath", "rect"}


class Reader(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self.links = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name) for name, _ in attrs]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def seen(page):
    return Reader(render_html(page))


@pytest.fixture(scope="module")
def hostile(spread):
    return render_html(page_of(spread(list(HOSTILE.values()))))


def test_the_verdict_comes_first_and_every_part_is_there(seen):
    words = " ".join(seen.words)
    places = [words.index(text) for text in ("shapes_d0 on cpu", "Every required clause", "Margins to every limit")]
    for text in ("Where the points went", "Accuracy against", "Throughput", "Worst images", "Environment", "How to"):
        places.append(words.index(text, places[-1]))
    assert places == sorted(places)
    assert "This is not a release: --chip=cpu." in words
    assert "Simulated" not in words


def test_the_page_needs_nothing_but_itself(seen):
    assert set(seen.tags) <= TAGS | DRAWN
    assert {link[:5] for link in seen.links if not link.startswith("#")} == {"data:"}
    assert not [name for _, name in seen.attributes if name.startswith("on")]


def test_tables_have_captions_and_heads_for_rows_and_columns(seen):
    assert seen.tags.count("table") == seen.tags.count("caption") >= 9
    assert seen.tags.count("th") == seen.attributes.count(("th", "scope"))
    assert seen.tags.count("img") == seen.attributes.count(("img", "alt")) == 6


def test_no_id_is_used_twice(page):
    ids = re.findall(r'\bid="([^"]+)"', render_html(page))
    assert len(ids) == len(set(ids)) > 100


def test_a_simulated_device_is_said_to_be_one_above_everything(page):
    environment = page.document.environment.model_copy(update={"simulation": "310P3, faults none"})
    document = page.document.model_copy(update={"environment": environment})
    html = render_html(dataclasses.replace(page, document=document))
    assert html.index("Simulated: 310P3, faults none. No hardware was measured.") < html.index("<h1>")
    assert "@top-center" in html


def test_a_picture_that_was_left_out_is_said_to_be(page):
    without = tuple(dataclasses.replace(item, picture=None) for item in page.worst)
    reader = Reader(render_html(dataclasses.replace(page, worst=without)))
    assert "img" not in reader.tags
    assert sum("holds no picture" in text for text in reader.words) == 6


def test_hostile_texts_add_nothing_to_the_page(hostile):
    reader = Reader(hostile)
    assert set(reader.tags) <= TAGS | DRAWN
    assert not [name for _, name in reader.attributes if name.startswith("on")]
    assert [link for link in reader.links if not link.startswith(("#", "data:"))] == []
    assert all(char.isprintable() or char == "\n" for char in hostile)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_are_shown(hostile, text):
    shown = shortened(text, 150).rstrip("…")
    assert sum(shown in words for words in Reader(hostile).words) >= 10
