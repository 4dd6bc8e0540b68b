import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from support.errors import WrongDataError
from support.report.pictures import COLOURS, SIDE, draw, draw_worst, picture_name
from support.report.worst import WorstImage


@pytest.fixture
def grey(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (200, 100), (128, 128, 128)).save(path)
    return path


@pytest.fixture
def worst(reference):
    none = one_box(reference, None)
    return WorstImage(7, 1.0, 1, none, none, none, none, none)


def one_box(detections, box, score=0.9):
    count = int(box is not None)
    return type(detections)(
        images=np.array([7], np.int64),
        image_ids=np.full(count, 7, np.int64),
        boxes=np.array([box] if count else [], np.float32).reshape(-1, 4),
        scores=np.full(count, score, np.float32),
        category_ids=np.ones(count, np.int32),
        anchors=np.zeros(count, np.int32),
    )


def colour_at(picture, x, y):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[y, x].astype(int)


def assert_close(found, colour):
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    assert np.abs(found - wanted).max() < 60


def test_each_kind_of_box_has_its_colour(worst, reference, grey):
    picture = draw(
        dataclasses.replace(
            worst,
            truth=one_box(reference, (10, 10, 60, 60)),
            reference=one_box(reference, (80, 20, 120, 80)),
            candidate=one_box(reference, (140, 20, 180, 80)),
        ),
        grey,
    )
    assert_close(colour_at(picture, 12, 10), COLOURS["truth"])
    assert_close(colour_at(picture, 35, 10), "#808080")
    assert_close(colour_at(picture, 82, 50), COLOURS["reference"])
    assert_close(colour_at(picture, 100, 50), "#808080")
    assert_close(colour_at(picture, 140, 50), COLOURS["candidate"])


def test_weak_detections_are_drawn_only_if_they_are_lost_or_new(worst, reference, grey):
    weak = one_box(reference, (80, 20, 120, 80), score=0.1)
    assert_close(colour_at(draw(dataclasses.replace(worst, reference=weak), grey), 82, 50), "#808080")
    assert_close(colour_at(draw(dataclasses.replace(worst, lost=weak), grey), 82, 50), COLOURS["reference"])
    assert_close(colour_at(draw(dataclasses.replace(worst, new=weak), grey), 80, 50), COLOURS["candidate"])


def test_large_images_are_made_smaller_and_boxes_with_them(worst, reference, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (2 * SIDE, SIDE), (128, 128, 128)).save(path)
    picture = draw(dataclasses.replace(worst, reference=one_box(reference, (400, 200, 800, 600))), path)
    assert Image.open(io.BytesIO(picture)).size == (SIDE, SIDE // 2)
    assert_close(colour_at(picture, 202, 200), COLOURS["reference"])


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (-50, -50, 900, 900), (20, 20, 20, 80)])
def test_boxes_of_any_size_can_be_drawn(worst, reference, grey, box):
    boxes = one_box(reference, box)
    assert draw(dataclasses.replace(worst, truth=boxes, reference=boxes, candidate=boxes), grey).startswith(b"\xff\xd8")


def test_pictures_are_named_after_their_images(worst, grey):
    assert list(draw_worst([worst], {7: grey})) == [picture_name(7)] == ["worst_000000000007.jpg"]


def test_an_image_that_cannot_be_read_is_named(worst, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(WrongDataError, match=r"broken\.jpg"):
        draw(worst, tmp_path / "broken.jpg")
