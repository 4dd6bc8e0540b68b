import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import agreement
from support.agreement import match, overlapping
from support.detections import Detections
from support.errors import WrongDataError
from support.spec import load_spec

ACCURACY = load_spec("shapes_d0").accuracy
FLOOR, TOLERANCE = ACCURACY.score_floor, ACCURACY.score_tolerance


def detected(*rows, images=(1, 2)):
    columns = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return Detections(
        images=np.asarray(images, dtype=np.int64),
        image_ids=columns[:, 0].astype(np.int64),
        boxes=columns[:, 1:5].astype(np.float32),
        scores=columns[:, 5].astype(np.float32),
        category_ids=columns[:, 6].astype(np.int32),
        anchors=np.zeros(len(columns), dtype=np.int32),
    )


def paired(reference, candidate, capacity=100):
    return match(reference, candidate, ACCURACY, capacity)


def pairs(matches):
    return list(zip(matches.reference_rows.tolist(), matches.candidate_rows.tolist(), strict=True))


def crowded(seed, boxes=200, images=3, categories=4):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (boxes, 2))
    sizes = rng.uniform(0, 60, (boxes, 2))
    columns = [rng.integers(1, images + 1, boxes), *corners.T, *(corners + sizes).T]
    rows = np.column_stack([*columns, rng.random(boxes), rng.integers(1, categories + 1, boxes)])
    return detected(*rows, images=range(1, images + 1))


def walk(reference, candidate, iou):
    # The rule of `overlapping`, one pair at a time.
    def wide(part, row):
        return part.boxes[row] + np.array([-0.5, -0.5, 0.5, 0.5])

    def overlap(first, second):
        shared = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None).prod()
        return shared / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - shared)

    close = []
    for i in range(len(reference.scores)):
        for j in range(len(candidate.scores)):
            same_image = reference.image_ids[i] == candidate.image_ids[j]
            if same_image and reference.category_ids[i] == candidate.category_ids[j]:
                close.append((-overlap(wide(reference, i), wide(candidate, j)), j, i))
    taken = {}
    for negative, j, i in sorted(close):
        if -negative >= iou and j not in taken and i not in taken.values():
            taken[j] = i
    return [(i, j) for j, i in sorted(taken.items())]


def test_a_pass_matches_itself_whole():
    detections = crowded(seed=0)

    matches = paired(detections, detections)

    assert matches.unmatched == 0
    assert len(matches.reference_rows) == np.sum(detections.scores >= np.float32(FLOOR))
    np.testing.assert_array_equal(matches.reference_rows, matches.candidate_rows)
    assert not matches.score_changes.any()
    assert not matches.box_changes.any()


@pytest.mark.parametrize("seed", range(4))
def test_pairing_in_rounds_equals_a_walk_through_the_sorted_pairs(seed):
    reference, candidate = crowded(seed), crowded(seed + 100)

    first, second = overlapping(reference, candidate, ACCURACY.match_iou)

    assert len(first) > 5
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == walk(reference, candidate, ACCURACY.match_iou)


def test_the_size_of_a_chunk_does_not_matter(monkeypatch):
    reference, candidate = crowded(0), crowded(100)
    whole = pairs(paired(reference, candidate))

    monkeypatch.setattr(agreement, "_CHUNK", 7)

    assert pairs(paired(reference, candidate)) == whole


@given(st.permutations(range(20)))
def test_the_order_of_a_pass_does_not_matter(order):
    detections = crowded(seed=1, boxes=20)
    columns = ("image_ids", "boxes", "scores", "category_ids", "anchors")
    shuffled = dataclasses.replace(detections, **{name: getattr(detections, name)[order] for name in columns})

    matches = paired(detections, shuffled)

    assert matches.unmatched == 0
    np.testing.assert_array_equal(matches.reference_rows, np.array(order)[matches.candidate_rows])


def test_changes_of_score_and_box_are_those_of_the_pairs():
    reference = detected([1, 0, 0, 50, 50, 0.9, 1], [2, 0, 0, 50, 50, 0.5, 1])
    candidate = detected([2, 0, 0, 50, 53, 0.6, 1], [1, 1, 0, 48, 50, 0.8, 1])

    matches = paired(reference, candidate)

    assert pairs(matches) == [(1, 0), (0, 1)]
    assert matches.image_ids.tolist() == [2, 1]
    assert matches.score_changes == pytest.approx([0.1, -0.1])
    assert matches.box_changes == pytest.approx([3, 2])


@pytest.mark.parametrize(
    "other",
    [[1, 0, 0, 50, 50, 0.9, 2], [2, 0, 0, 50, 50, 0.9, 1], [1, 40, 40, 90, 90, 0.9, 1]],
    ids=["another class", "another image", "another place"],
)
def test_what_differs_has_no_partner_on_either_side(other):
    matches = paired(detected([1, 0, 0, 50, 50, 0.9, 1]), detected(other))

    assert pairs(matches) == []
    assert (matches.lost.tolist(), matches.surplus.tolist()) == ([0], [0])
    assert matches.unmatched == 2


def test_of_two_boxes_the_better_overlapping_is_the_partner_whatever_the_scores():
    reference = detected([1, 0, 0, 50, 50, 0.7, 1])
    candidate = detected([1, 10, 0, 60, 50, 0.9, 1], [1, 1, 0, 50, 50, 0.2, 1])

    matches = paired(reference, candidate)

    assert pairs(matches) == [(0, 1)]
    assert matches.surplus.tolist() == [0]


def test_a_score_that_crosses_the_floor_keeps_its_partner():
    above, below = [1, 0, 0, 50, 50, FLOOR + 0.001, 1], [1, 0, 0, 50, 50, FLOOR - 0.001, 1]

    for reference, candidate in ((above, below), (below, above)):
        matches = paired(detected(reference), detected(candidate))
        assert pairs(matches) == [(0, 0)]
        assert matches.unmatched == 0


def test_below_the_floor_nothing_counts():
    weak = FLOOR - 0.001
    reference = detected([1, 0, 0, 50, 50, weak, 1], [2, 0, 0, 50, 50, weak, 1])

    matches = paired(reference, detected([1, 0, 0, 50, 50, weak, 1]))

    assert pairs(matches) == []
    assert matches.unmatched == 0


def test_a_box_clipped_to_a_line_matches_itself():
    line = detected([1, 100, 20, 100, 80, 0.9, 1])

    assert paired(line, line).unmatched == 0


def test_what_a_full_list_may_have_cut_off_is_not_missed():
    last = 0.4
    kept = [[1, 0, 0, 50, 50, 0.9, 1], [1, 60, 0, 90, 50, last, 1]]
    reference = detected(*kept, [1, 0, 60, 50, 90, last + TOLERANCE / 2, 1])

    assert paired(reference, detected(*kept), capacity=2).unmatched == 0


@pytest.mark.parametrize(("capacity", "excess"), [(2, 2 * TOLERANCE), (3, TOLERANCE / 2)], ids=["scored", "not full"])
def test_what_the_list_had_room_for_is_missed(capacity, excess):
    last = 0.4
    kept = [[1, 0, 0, 50, 50, 0.9, 1], [1, 60, 0, 90, 50, last, 1]]
    reference = detected(*kept, [1, 0, 60, 50, 90, last + excess, 1])

    assert paired(reference, detected(*kept), capacity).lost.tolist() == [2]


def test_an_empty_pass_has_lost_everything():
    reference = detected([1, 0, 0, 50, 50, 0.9, 1], [2, 0, 0, 50, 50, 0.9, 1])

    assert paired(reference, detected()).lost.tolist() == [0, 1]
    assert paired(detected(), reference).surplus.tolist() == [0, 1]


def test_passes_over_different_images_cannot_be_compared():
    reference, candidate = detected(images=(1, 2)), detected(images=(1, 2, 5))

    with pytest.raises(
        WrongDataError, match="1 images are in reference or candidate only; image 5 is only in candidate"
    ):
        paired(reference, candidate)
    with pytest.raises(WrongDataError, match="image 5 is only in reference"):
        paired(candidate, reference)
