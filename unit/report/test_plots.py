import math
import xml.etree.ElementTree as ET

import pytest

from support.report import plots
from support.report.curves import precision_curves
from support.timing import ThroughputEstimate
from unit.report.conftest import HOSTILE


def estimate_of(batch, value, upper=None):
    return ThroughputEstimate(
        chip="cpu",
        batch=batch,
        timer="",
        includes_copies=True,
        confidence=0.95,
        images_per_second=value,
        lower=value * 0.9,
        upper=value * 1.1 if upper is None else upper,
        judged_lower=value * 0.8,
        judged_upper=value * 1.2,
        real_images_per_second=value,
        passes=1,
        calls=4,
        images=16,
        blocks=4,
        block_calls=1,
        autocorrelation=None,
        p50_ms=1.0,
        p90_ms=1.0,
        p99_ms=1.0,
    )


def words_of(svg):
    return [element.text for element in ET.fromstring(svg).iter("text")]


@pytest.fixture(scope="module")
def drawings(truth, reference, spec):
    curves = precision_curves(truth, reference)
    groups = [("disc", 40.0), ("square", math.nan)]
    return {
        "ladder": plots.stage_ladder({"checkpoint": 41.2, "candidate": 40.9}, name="ladder"),
        "curves": plots.precision_recall(curves, curves, name="curves"),
        "curves alone": plots.precision_recall(curves, None, name="alone"),
        "batches": plots.ap_by_batch({1: 41.2, 4: 41.1}, {"reference": 41.2, "limit": 40.8}, name="batches"),
        "groups": plots.ap_by_group(groups, groups, name="groups"),
        "groups alone": plots.ap_by_group(groups, None, name="groups"),
        "speed": plots.throughput(
            [estimate_of(1, 10.0), estimate_of(3, 12.0, math.inf)], list(spec.baselines.values()), name="speed"
        ),
    }


DRAWN = ("ladder", "curves", "curves alone", "batches", "groups", "groups alone", "speed")


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_takes_every_colour_from_the_page(drawings, name):
    svg = drawings[name]
    assert "var(--ink)" in svg
    assert "var(--candidate)" in svg
    assert [word for word in ("#0", "#1f77b4", "#000000", "#ffffff", "black") if word in svg.replace('"#', '"')] == []


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_acts_on_nothing_but_itself(drawings, name):
    root = ET.fromstring(drawings[name])
    tags = {element.tag for element in root.iter()}
    assert tags <= {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect"}
    ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    used = {element.attrib["href"][1:] for element in root.iter() if "href" in element.attrib}
    assert used <= ids
    assert len({identifier.partition("-")[0] for identifier in ids}) == 1
    for element in root.iter():
        if "clip-path" in element.attrib:
            assert element.attrib["clip-path"][5:-1] in ids


def test_equal_drawings_are_equal_to_the_byte(drawings):
    again = plots.stage_ladder({"checkpoint": 41.2, "candidate": 40.9}, name="ladder")
    assert again == drawings["ladder"]


def test_the_values_of_the_ladder_are_written(drawings):
    words = words_of(drawings["ladder"])
    assert {"checkpoint", "candidate", "41.20", "40.90"} <= set(words)


def test_a_ladder_without_a_loss_does_not_enlarge_its_noise():
    words = words_of(plots.stage_ladder({"a": 41.0, "b": 41.0000001}, name="flat"))
    ticks = [float(word) for word in words if word.replace(".", "").isdigit() and word != "41.00"]
    assert max(ticks) - min(ticks) >= 1


def test_a_reference_that_is_not_there_is_not_in_the_legend(drawings):
    assert "reference" in words_of(drawings["curves"])
    assert "reference" not in words_of(drawings["curves alone"])
    assert "reference" not in words_of(drawings["groups alone"])


def test_every_published_table_is_in_the_legend(drawings, spec):
    assert {table.chip for table in spec.baselines.values()} <= set(words_of(drawings["speed"]))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_are_words(text):
    svg = plots.ap_by_group([(text, 40.0), (text, 50.0)], None, name="hostile")
    tags = {element.tag for element in ET.fromstring(svg).iter()}
    assert not {"script", "img", "table"} & tags
    assert all(char.isprintable() or char == "\n" for char in svg)
    assert len(svg) < 20_000
