import runpy
from pathlib import Path

import numpy as np
import pytest

from support.shapes.scenes import CATEGORIES, KINDS, Population, _Canvas, render, shape_mask, texture

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_notes = pytest.mark.skipif(
    not (SHARED / "kit").is_dir(), reason="needs the first generator beside the checkout: shared/kit"
)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def canvas():
    return _Canvas(np.zeros((100, 100, 3), np.float32))


def place(canvas, size, left, top):
    canvas.place(generator(), "square", np.full((size, size), 255, np.uint8), left, top)
    return canvas.placed


def test_the_same_seed_gives_the_same_scene():
    first, second = (render(generator(3), 120, 160) for _ in range(2))
    assert np.array_equal(first.pixels, second.pixels)
    assert first.objects == second.objects


def test_another_seed_gives_another_scene():
    assert not np.array_equal(render(generator(3), 120, 160).pixels, render(generator(4), 120, 160).pixels)


@pytest.mark.parametrize("seed", range(12))
def test_objects_lie_inside_the_picture_and_are_at_least_half_visible(seed):
    scene = render(generator(seed), 150, 200)
    assert scene.pixels.shape == (150, 200, 3)
    assert scene.pixels.dtype == np.uint8
    for item in scene.objects:
        x0, y0, x1, y1 = item.box
        assert 0 <= x0 < x1 <= 200
        assert 0 <= y0 < y1 <= 150
        assert 0 < item.visible_area <= (x1 - x0) * (y1 - y0)


def test_a_population_bounds_number_and_size():
    population = Population(smallest=10, largest=12, most=2)
    scenes = [render(generator(seed), 96, 96, population) for seed in range(20)]
    assert max(len(scene.objects) for scene in scenes) == 2
    # A diameter of 12 px, stretched by at most about 1.5 and turned, stays below 12 × 1.5 × √2.
    sides = [item.box[2] - item.box[0] for scene in scenes for item in scene.objects]
    assert 4 <= min(sides) <= max(sides) <= 25


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_cropped_to_its_shape(kind):
    mask = shape_mask(kind, 60, 0.3, 1.1)
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert edge.any()


def test_every_kind_has_a_shape_of_its_own():
    masks = {kind: shape_mask(kind, 60, 0.0, 1.0) for kind in KINDS}
    assert len({(mask.shape, mask.tobytes()) for mask in masks.values()}) == len(KINDS)


def test_a_mask_stretches_in_width_and_turns():
    high, wide = shape_mask("square", 60, 0.0, 0.5), shape_mask("square", 60, 0.0, 2.0)
    assert high.shape == wide.shape[::-1]
    assert wide.shape[1] > 3 * wide.shape[0]
    assert shape_mask("square", 60, np.pi / 2, 2.0).shape == high.shape


def test_a_texture_holds_whole_grey_levels():
    background = texture(generator(5), 60, 80)
    assert background.shape == (60, 80, 3)
    assert background.min() >= 0
    assert background.max() <= 255
    assert np.array_equal(background, background.round())


def test_category_ids_have_gaps_and_ascend():
    ids = list(CATEGORIES.values())
    assert ids == [1, 2, 3, 5, 8, 13, 21, 34, 55, 89]


def test_an_object_is_painted_and_boxed(canvas):
    (item,) = place(canvas, 20, 30, 40)
    assert (item.box, item.area, item.hidden) == ((30, 40, 50, 60), 400, 0)
    assert canvas.pixels[40:60, 30:50].any(-1).all()
    assert (canvas.owners >= 0).sum() == 400


def test_an_object_is_cut_at_the_border(canvas):
    (item,) = place(canvas, 20, -4, 86)
    assert (item.box, item.area) == ((0, 86, 16, 100), 224)


def test_an_object_mostly_outside_is_left_out(canvas):
    assert place(canvas, 20, -11, 40) == []


def test_hidden_pixels_are_counted(canvas):
    place(canvas, 20, 30, 40)
    lower, upper = place(canvas, 20, 42, 40)
    assert (lower.hidden, upper.hidden) == (160, 0)


def test_an_object_that_would_hide_too_much_is_left_out(canvas):
    place(canvas, 20, 30, 40)
    assert len(place(canvas, 20, 40, 40)) == 1  # half of the earlier one would be gone
    assert canvas.placed[0].hidden == 0


def test_hiding_adds_up(canvas):
    place(canvas, 20, 30, 40)
    place(canvas, 20, 43, 40)
    assert len(place(canvas, 20, 17, 40)) == 2  # 35 % each, 70 % together


@needs_notes
@pytest.mark.parametrize("size", [(480, 640), (333, 500), (256, 256)])
def test_scenes_equal_those_of_the_first_generator(size):
    notes = runpy.run_path(str(SHARED / "kit/scenes.py"))
    for seed in range(3):
        pixels, boxes, labels, areas = notes["scene"](generator(seed), *size)
        ours = render(generator(seed), *size)
        assert np.array_equal(ours.pixels, pixels)
        assert [(item.kind, *item.box, item.visible_area) for item in ours.objects] == [
            (notes["CATEGORIES"][label - 1], *box, area)
            for box, label, area in zip(boxes.tolist(), labels, areas.tolist(), strict=True)
        ]
