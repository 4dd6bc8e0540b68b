import dataclasses

import numpy as np
import pytest

from support.errors import WrongDataError
from support.report.worst import worst_images
from unit.report.conftest import rows_of


def without_image(detections, image):
    return rows_of(detections, detections.image_ids != image)


def test_an_image_whose_detections_are_lost_is_the_worst(truth, reference, spec):
    image = int(reference.images[77])
    (worst,) = worst_images(truth, reference, without_image(reference, image), spec, 1)
    scores = reference.of(image).scores
    assert worst.image_id == image
    assert worst.difference == pytest.approx(scores.sum())
    assert sorted(worst.lost.scores) == sorted(scores)
    assert worst.candidate.scores.size == worst.new.scores.size == 0
    assert worst.missed == worst.truth.scores.size


def test_new_detections_count_like_lost_ones(truth, reference, spec):
    image = int(reference.images[77])
    (worst,) = worst_images(truth, without_image(reference, image), reference, spec, 1)
    assert (worst.image_id, worst.lost.scores.size) == (image, 0)
    assert worst.new.scores.size == reference.of(image).scores.size


def test_a_change_of_score_counts_if_it_exceeds_the_tolerance(truth, reference, spec):
    scores = reference.scores.copy()
    scores[5] -= 0.05
    scores[9] -= spec.accuracy.score_tolerance / 2
    worst = worst_images(truth, reference, dataclasses.replace(reference, scores=scores), spec, 2)
    assert worst[0].image_id == reference.image_ids[5]
    assert [item.difference for item in worst] == pytest.approx([0.05, 0])


def test_a_clean_run_shows_where_most_objects_are_missed(truth, reference, spec):
    worst = worst_images(truth, reference, reference, spec, 6)
    assert [item.difference for item in worst] == [0] * 6
    missed = [item.missed for item in worst]
    assert missed == sorted(missed, reverse=True)
    assert missed[0] > 0


def test_without_a_reference_only_missed_objects_rank(truth, reference, spec):
    alone, both = (worst_images(truth, known, reference, spec, 6) for known in (None, reference))
    assert [item.image_id for item in alone] == [item.image_id for item in both]
    assert all(item.reference.scores.size == 0 for item in alone)


def test_images_without_a_fault_are_never_shown(truth, reference, spec):
    images = reference.images[:3]
    kept = truth.limited(images.tolist())
    objects = [row for row in kept.coco["annotations"] if not row["iscrowd"]]
    boxes = np.array([row["bbox"] for row in objects], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    perfect = type(reference)(
        images=images,
        image_ids=np.array([row["image_id"] for row in objects], np.int64),
        boxes=boxes,
        scores=np.full(len(objects), 0.9, np.float32),
        category_ids=np.array([row["category_id"] for row in objects], np.int32),
        anchors=np.zeros(len(objects), np.int32),
    )
    assert worst_images(kept, perfect, perfect, spec, 6) == ()


def test_passes_over_different_images_are_refused(truth, reference, spec):
    with pytest.raises(
        WrongDataError,
        match="1 images are in",
    ):
        worst_images(truth, reference.select(reference.images[1:].tolist()), reference, spec, 6)
