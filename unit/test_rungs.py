import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from support.agreement import match
from support.dataset import open_dataset
from support.detections import Detections
from support.rungs import Differences, rung_order, rung_sizes
from support.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
SPEC = load_spec("shapes_d0")
RULES = load_spec("efficientdet_d0").rungs


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(ROOT / "fixtures/data/shapes", SPEC.dataset)


@pytest.mark.parametrize("batch", [1, 4, 8, 16, 32, 64])
def test_rungs_cost_at_most_their_share_of_a_full_pass(batch):
    first, second = rung_sizes(5000, batch, RULES)

    computed = sum(-(-images // batch) * batch for images in (first, second - first))
    assert first == RULES.images
    assert second >= 5 * first
    assert computed <= RULES.share * 5000


def test_a_set_too_small_for_its_share_has_no_rung():
    assert rung_sizes(533, 1, RULES) == ()
    assert rung_sizes(534, 1, RULES) == (16,)
    assert rung_sizes(533, 64, RULES) == rung_sizes(2133, 64, RULES) == ()


def test_the_kit_has_room_for_one_rung_at_small_batch_sizes():
    assert [rung_sizes(133, batch, SPEC.rungs) for batch in SPEC.batch_sizes] == [(16,)] * 4 + [()] * 2


def test_every_image_has_one_place_in_the_order(dataset):
    order = rung_order(dataset, 512)

    assert sorted(order) == [image.id for image in dataset.images]
    assert order != tuple(sorted(order))


def kinds(dataset, image_ids):
    portrait = {image.id: image.height > image.width for image in dataset.images}
    smallest = {image.id: np.inf for image in dataset.images}
    for row in dataset.truth.coco["annotations"]:
        if not row["iscrowd"]:
            smallest[row["image_id"]] = min(smallest[row["image_id"]], row["area"])
    return Counter((portrait[image], bool(smallest[image] <= 32**2)) for image in image_ids)


def test_the_first_images_are_of_every_kind(dataset):
    for salt in ("", "a", "b", "c"):
        first = kinds(dataset, rung_order(dataset, 512, salt=salt)[:16])
        assert set(first) == set(kinds(dataset, [image.id for image in dataset.images]))


def test_the_order_follows_from_ids_and_not_from_places(dataset):
    mixed = dataclasses.replace(dataset, images=dataset.images[::-1])

    assert rung_order(mixed, 512) == rung_order(dataset, 512)
    assert rung_order(dataset, 512, salt="another") != rung_order(dataset, 512)


def test_sizes_of_images_are_kinds_of_their_own(dataset):
    reduced = {image.id: max(image.width, image.height) > 512 for image in dataset.images}

    assert 4 <= sum(reduced[image] for image in rung_order(dataset, 512)[:16]) <= 12


# -- differences -------------------------------------------------------------------------------------------------------


def detected(scores, shift=0.0, images=(3, 5)):
    # Ten boxes on each image, far from one another.
    scores = np.asarray(scores, np.float32).reshape(len(images), -1)
    count = scores.shape[1]
    corners = np.tile(100.0 * np.arange(count), len(images))[:, None] + shift * np.ones(4)
    return Detections(
        images=np.array(images, np.int64),
        image_ids=np.repeat(images, count).astype(np.int64),
        boxes=(corners + np.array([0, 0, 50, 50])).astype(np.float32),
        scores=scores.ravel(),
        category_ids=np.ones(scores.size, np.int32),
        anchors=np.zeros(scores.size, np.int32),
    )


def differences(reference, candidate):
    return Differences.of(match(reference, candidate, SPEC.accuracy, 100), SPEC.accuracy.score_tolerance)


def test_changed_and_unmatched_detections_are_counted_image_by_image():
    reference = detected([[0.9] * 10, [0.5] * 10])
    scores = reference.scores.copy()
    scores[[1, 2]] += 0.03
    scores[[3, 12]] += 0.01
    boxes = reference.boxes.copy()
    boxes[15] += 1000
    found = differences(reference, dataclasses.replace(reference, scores=scores, boxes=boxes))

    assert found.images.tolist() == [3, 5]
    assert found.totals.tolist() == [10, 11]
    assert found.different.tolist() == [2, 2]
    assert found.values(RULES) == {"different": pytest.approx(4 / 21), "ruined_images": 0}
    assert found.select([5]).values(RULES)["different"] == pytest.approx(2 / 11)


def test_an_image_on_which_most_detections_differ_is_ruined():
    reference = detected([[0.9] * 10, [0.5] * 10])
    scores = reference.scores.copy()
    scores[10:15] += 0.1
    assert differences(reference, dataclasses.replace(reference, scores=scores)).ruined(RULES).tolist() == []
    scores[15] += 0.1
    assert differences(reference, dataclasses.replace(reference, scores=scores)).ruined(RULES).tolist() == [5]


def test_too_few_detections_ruin_no_image():
    few = RULES.image_detections - 1
    reference, candidate = detected([[0.9] * few, [0.5] * few]), detected([[0.1] * few, [0.9] * few])

    found = differences(reference, candidate)

    assert found.values(RULES) == {"different": 1, "ruined_images": 0}


def test_a_candidate_that_finds_nothing_differs_in_everything():
    reference = detected([[0.9] * 10, [0.5] * 10])
    nothing = dataclasses.replace(reference.select([]), images=reference.images)

    assert differences(reference, nothing).values(RULES) == {"different": 1, "ruined_images": 2}
    assert differences(nothing, reference).values(RULES) == {"different": 1, "ruined_images": 2}


def test_images_without_detections_do_not_differ():
    nothing = dataclasses.replace(detected([[0.9] * 10] * 2).select([]), images=np.array([3, 5], np.int64))

    assert differences(nothing, nothing).values(RULES) == {"different": 0, "ruined_images": 0}
