import dataclasses
from pathlib import Path

import numpy as np
import pytest

from support.agreement import match
from support.dataset import open_dataset
from support.detections import Detections
from support.errors import NoReferenceError
from support.measurements.agreement import batch_invariance, score_agreement, timed_outputs
from support.scoring import score
from support.spec import load_spec
from support.verdict import judge

ROOT = Path(__file__).resolve().parents[2]
KIT = load_spec("shapes_d0")
IMAGES = KIT.dataset.image_count
STAR = 5


@pytest.fixture(scope="module")
def truth():
    return open_dataset(ROOT / "fixtures/data/shapes", KIT.dataset).truth


@pytest.fixture(scope="module")
def reference(truth):
    rng = np.random.default_rng(0)
    rows = np.array([[row["image_id"], *row["bbox"], row["category_id"]] for row in truth.coco["annotations"]])
    return Detections(
        images=np.array([image["id"] for image in truth.coco["images"]], dtype=np.int64),
        image_ids=rows[:, 0].astype(np.int64),
        boxes=np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], axis=1).astype(np.float32),
        scores=rng.uniform(0.02, 0.98, len(rows)).astype(np.float32),
        category_ids=rows[:, 5].astype(np.int32),
        anchors=np.arange(len(rows), dtype=np.int32),
    )


@pytest.fixture(scope="module")
def shaken(reference):
    rng = np.random.default_rng(1)
    return dataclasses.replace(
        reference,
        scores=(reference.scores + rng.normal(0, 1e-5, len(reference.scores))).astype(np.float32),
        boxes=(reference.boxes + rng.normal(0, 1e-3, reference.boxes.shape)).astype(np.float32),
    )


def with_scores(detections, scores):
    return dataclasses.replace(detections, scores=np.asarray(scores, dtype=np.float32))


def without(detections, dropped):
    columns = ("image_ids", "boxes", "scores", "category_ids", "anchors")
    return dataclasses.replace(detections, **{name: getattr(detections, name)[~dropped] for name in columns})


def paired(reference, candidate):
    return match(reference, candidate, KIT.accuracy, KIT.model.max_detections)


def agreement(reference, candidate):
    return score_agreement(paired(reference, candidate), KIT.accuracy, IMAGES)


def invariance(reference, candidate, slot_error=0.0, precision="full"):
    return batch_invariance(paired(reference, candidate), slot_error, IMAGES, precision=precision)


def repeat(reference, candidate, precision="full"):
    return timed_outputs(paired(reference, candidate), KIT.throughput, precision=precision, expected=IMAGES)


def in_mixed_precision(measure):
    return lambda reference, candidate: measure(reference, candidate, precision="mixed")


def verdict(name, measurement):
    return judge(name, KIT.clauses[name], measurement)


def outside(name, measurement):
    return {reading.name for reading in verdict(name, measurement).readings if not reading.inside}


@pytest.mark.parametrize(
    ("name", "measure"),
    [("score_agreement", agreement), ("batch_invariance", invariance), ("timed_outputs", repeat)],
)
def test_passes_that_differ_by_rounding_agree(reference, shaken, name, measure):
    measurement = measure(reference, shaken)

    assert verdict(name, measurement).word == "accepted"
    assert measurement.count == measurement.expected == IMAGES


@pytest.mark.parametrize(
    ("name", "measure"),
    [("score_agreement", agreement), ("batch_invariance", invariance), ("timed_outputs", repeat)],
)
def test_passes_over_part_of_the_images_are_undetermined(reference, name, measure):
    part = reference.select(reference.images[:64].tolist())

    assert verdict(name, measure(part, part)).reason == "partial"


def test_a_second_sigmoid_is_rejected_although_it_leaves_ap_unchanged(truth, reference):
    twice = with_scores(reference, 1 / (1 + np.exp(-reference.scores)))

    measurement = agreement(reference, twice)

    assert score(truth, twice, "hotcoco").ap == score(truth, reference, "hotcoco").ap
    assert verdict("score_agreement", measurement).word == "rejected"
    assert verdict("score_agreement", measurement).suspect == "sigmoid applied twice"
    groups = {"different_images", "different_classes"}
    assert outside("score_agreement", measurement) == {"score_p99", "slope_error", "outliers", *groups}


def test_scores_scaled_by_a_hundredth_are_rejected_for_their_slope(reference):
    measurement = agreement(reference, with_scores(reference, reference.scores * 0.99))

    assert "slope_error" in outside("score_agreement", measurement)
    assert measurement.values["slope_error"] == pytest.approx(0.01, rel=1e-4)
    assert "score of the candidate = 0.99000 x that of the reference" in measurement.findings[-1]


def test_one_score_in_fifty_that_jumps_is_rejected(reference):
    scores = reference.scores.copy()
    scores[::50] = 1 - scores[::50]

    measurement = agreement(reference, with_scores(reference, scores))

    assert {"score_p99", "outliers"} <= outside("score_agreement", measurement)
    assert measurement.findings[0].startswith("largest change of score: 0.")


def test_a_class_without_detections_is_rejected_and_named(reference):
    measurement = agreement(reference, without(reference, reference.category_ids == STAR))

    assert outside("score_agreement", measurement) == {"unmatched", "different_classes"}
    assert measurement.suspect == "the class channel of category 5"


# -- what a mean over everything hides ---------------------------------------------------------------------------------

# A set so large that an image or a rare class is less than any part of it that is limited: 2,000 images of ten boxes.
MANY, BOXES = 2000, 10
RARE = 89


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(2)
    ids = np.repeat(np.arange(1, MANY + 1), BOXES)
    corners = np.tile(np.arange(BOXES) * 300.0, MANY)
    sides = np.tile([20, 40, 40, 90, 90, 90, 180, 180, 260, 280], MANY).astype(float)
    categories = np.tile(np.arange(1, BOXES + 1), MANY)
    categories[:6] = RARE
    return Detections(
        images=np.arange(1, MANY + 1, dtype=np.int64),
        image_ids=ids.astype(np.int64),
        boxes=np.stack([corners, corners, corners + sides, corners + sides], axis=1).astype(np.float32),
        scores=rng.uniform(0.1, 0.9, len(ids)).astype(np.float32),
        category_ids=categories.astype(np.int32),
        anchors=np.zeros(len(ids), np.int32),
    )


def among_many(many, **changes):
    matches = match(many, dataclasses.replace(many, **changes), KIT.accuracy, KIT.model.max_detections)
    return score_agreement(matches, KIT.accuracy, MANY)


def test_one_image_of_many_that_is_another_is_rejected_and_named(many):
    scores = many.scores.copy()
    scores[many.image_ids == 77] *= 0.8
    measurement = among_many(many, scores=scores)
    assert outside("score_agreement", measurement) == {"different_images"}
    assert measurement.suspect == "batch, slot or input of single images: 77"
    assert "1 images differ in most of their detections: 77" in measurement.findings


def test_a_rare_class_that_is_lost_is_rejected_and_named(many):
    ids = np.where(many.category_ids == RARE, 90, many.category_ids)
    measurement = among_many(many, category_ids=ids)
    assert "different_classes" in outside("score_agreement", measurement)
    assert measurement.values["unmatched"] < KIT.clauses["score_agreement"].limits["unmatched"].number
    assert measurement.suspect == f"the class channel of category {RARE}"


def test_a_rare_class_with_other_scores_is_rejected_and_named(many):
    scores = np.where((many.category_ids == RARE) & (np.arange(len(many.scores)) < 4), many.scores * 0.8, many.scores)
    measurement = among_many(many, scores=scores.astype(np.float32))
    assert outside("score_agreement", measurement) == {"different_classes"}
    assert measurement.suspect == f"class channels of categories {RARE}"


def test_a_few_strays_of_an_image_or_a_class_are_no_reason_to_reject(many):
    scores = many.scores.copy()
    scores[:3] *= 0.5
    measurement = among_many(many, scores=scores)
    assert outside("score_agreement", measurement) == set()
    assert measurement.values["different_images"] == 0


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [(32, 64, "from 32 px to 64 px"), (64, 128, "from 64 px to 128 px"), (256, 999, "from 256 px")],
)
def test_boxes_of_one_size_that_are_off_by_a_pixel_are_rejected_and_named(many, low, high, named):
    widths = many.boxes[:, 2] - many.boxes[:, 0]
    # Every third of these boxes, as of one anchor size of three in a cell.
    hit = (widths >= low) & (widths < high) & (many.image_ids % 3 == 0)
    boxes = many.boxes + np.float32([1, 0, 1, 0]) * hit[:, None]
    measurement = among_many(many, boxes=boxes.astype(np.float32))
    assert outside("score_agreement", measurement) == {"box_shift"}
    assert measurement.values["box_shift"] == pytest.approx(1 / 3, abs=0.01)
    assert measurement.suspect.startswith(f"anchors, or the feature level, of boxes with sides {named}")


def test_detections_that_are_only_new_point_at_suppression_and_those_only_lost_at_a_cut(many):
    thinned = without(many, many.image_ids % 10 == many.category_ids % 10)
    for first, second, named in ((thinned, many, "suppression"), (many, thinned, "candidates that were cut off")):
        matches = match(first, second, KIT.accuracy, KIT.model.max_detections)
        assert score_agreement(matches, KIT.accuracy, MANY).suspect.startswith(named)


def test_new_detections_beside_lost_ones_do_not_point_at_suppression(many):
    some, others = many.image_ids % 3 == 0, many.category_ids == 7
    fewer = without(many, others & (many.image_ids % 30 == 1))
    matches = match(without(many, some), fewer, KIT.accuracy, KIT.model.max_detections)
    assert len(matches.surplus) > 10 * len(matches.lost) > 0
    assert 100 * len(matches.lost) <= len(matches.reference_rows)
    assert score_agreement(matches, KIT.accuracy, MANY).suspect.startswith("suppression")
    moved = many.boxes + np.float32([500, 500, 500, 500]) * (others & (many.image_ids % 3 == 1))[:, None]
    matches = match(without(many, some), dataclasses.replace(many, boxes=moved), KIT.accuracy, 100)
    assert not score_agreement(matches, KIT.accuracy, MANY).suspect.startswith("suppression")


def test_boxes_that_jitter_without_a_direction_are_not_shifted(many):
    rng = np.random.default_rng(3)
    boxes = many.boxes + rng.normal(0, 0.3, many.boxes.shape)
    assert outside("score_agreement", among_many(many, boxes=boxes.astype(np.float32))) == set()


def test_shifted_class_ids_are_rejected_and_named(reference):
    shifted = dataclasses.replace(reference, category_ids=reference.category_ids % 90 + 1)

    measurement = agreement(reference, shifted)

    assert "unmatched" in outside("score_agreement", measurement)
    assert measurement.suspect == "class ids: most boxes have a partner in another class"


def test_boxes_as_corner_and_size_are_rejected_and_named(reference):
    boxes = reference.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]

    measurement = agreement(reference, dataclasses.replace(reference, boxes=boxes))

    assert "unmatched" in outside("score_agreement", measurement)
    assert measurement.suspect.startswith("boxes, or images paired with other ids")


def test_a_candidate_without_detections_agrees_in_nothing(reference):
    measurement = agreement(reference, without(reference, np.ones(len(reference.scores), dtype=bool)))

    values = measurement.values
    assert {values[name] for name in ("unmatched", "score_p99", "slope_error", "outliers")} == {1.0}
    assert values["different_classes"] == len(np.unique(reference.category_ids))
    assert verdict("score_agreement", measurement).word == "rejected"


def test_a_reference_without_detections_is_no_reference(reference):
    weak = with_scores(reference, np.full(len(reference.scores), KIT.accuracy.score_floor / 2))

    with pytest.raises(NoReferenceError, match="the reference has no detection above the score floor"):
        agreement(weak, reference)


def test_one_detection_that_only_one_batch_size_gives_is_rejected(reference):
    strongest = np.arange(len(reference.scores)) == np.argmax(reference.scores)

    measurement = invariance(reference, without(reference, strongest))

    assert outside("batch_invariance", measurement) == {"unmatched"}
    assert measurement.findings[0].startswith("1 detections lost and 0 new on 1 images; most on image ")


def test_one_image_repeated_through_the_batch_is_rejected(reference):
    # Every second image gets the detections of the one before it.
    images = np.sort(reference.images)
    parts = [dataclasses.replace(reference.of(images[k - k % 2]), images=images[k : k + 1]) for k in range(len(images))]
    repeated = Detections.concatenate(
        [dataclasses.replace(part, image_ids=np.full(len(part.scores), part.images[0])) for part in parts]
    )

    assert "unmatched" in outside("batch_invariance", invariance(reference, repeated))
    assert repeat(reference, repeated).values["different_images"] > IMAGES / 3


def test_one_score_one_box_or_one_slot_that_depends_on_the_batch_is_rejected(reference):
    limits = KIT.clauses["batch_invariance"].limits
    place = int(np.argmax(reference.scores))
    scores, boxes = reference.scores.copy(), reference.boxes.copy()
    scores[place] -= 1.1 * limits["score_change"].number
    boxes[place, 2] += 1.1 * limits["box_change"].number
    slot_error = 1.1 * limits["slot_error"].number

    score_change = invariance(reference, with_scores(reference, scores))
    box_change = invariance(reference, dataclasses.replace(reference, boxes=boxes))

    assert outside("batch_invariance", score_change) == {"score_change"}
    assert outside("batch_invariance", box_change) == {"box_change"}
    assert outside("batch_invariance", invariance(reference, reference, slot_error)) == {"slot_error"}
    assert f"image {reference.image_ids[place]}, category" in box_change.findings[1]


def test_images_that_the_timed_pass_got_wrong_are_counted_worst_first(reference):
    one, other = reference.images[3], reference.images[8]
    scores, boxes = reference.scores.copy(), reference.boxes.copy()
    scores[reference.image_ids == one] *= 0.9
    boxes[np.flatnonzero(reference.image_ids == other)[0]] += 1

    measurement = repeat(reference, dataclasses.replace(reference, scores=scores, boxes=boxes))

    assert measurement.values == {"different_images": 2}
    assert [finding.split(":")[0] for finding in measurement.findings] == [f"image {one}", f"image {other}"]
    assert verdict("timed_outputs", measurement).word == "rejected"


def test_outputs_cached_from_one_image_differ_on_all_others(reference):
    first = reference.of(int(reference.image_ids[0]))
    cached = Detections.concatenate(
        [
            dataclasses.replace(first, images=np.array([image]), image_ids=np.full(len(first.scores), image))
            for image in reference.images
        ]
    )

    assert repeat(reference, cached).values["different_images"] >= IMAGES - 1
    assert len(repeat(reference, cached).findings) == 5


# -- mixed precision ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounded(reference):
    # As measured between two orders of rounding: everything moves a little, and in three images another box of one of
    # many objects wins and takes another score.
    rng = np.random.default_rng(2)
    scores = reference.scores + rng.normal(0, 2e-4, len(reference.scores))
    boxes = reference.boxes + rng.normal(0, 0.1, reference.boxes.shape)
    _, firsts, counts = np.unique(reference.image_ids, return_index=True, return_counts=True)
    winners = firsts[np.argsort(counts)[-3:]]
    scores[winners] -= 0.06
    boxes[winners] += 4
    return dataclasses.replace(reference, scores=scores.astype(np.float32), boxes=boxes.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("score_agreement", agreement),
        ("batch_invariance", in_mixed_precision(invariance)),
        ("timed_outputs", in_mixed_precision(repeat)),
    ],
)
def test_what_half_precision_rounds_another_way_is_accepted_in_mixed_precision(reference, rounded, name, measure):
    measurement = measure(reference, rounded)

    assert verdict(name, measurement).word == "accepted"
    assert measurement.count == measurement.expected == IMAGES


@pytest.mark.parametrize(("name", "measure"), [("batch_invariance", invariance), ("timed_outputs", repeat)])
def test_the_same_is_rejected_in_full_precision(reference, rounded, name, measure):
    assert verdict(name, measure(reference, rounded)).word == "rejected"


def test_scores_boxes_or_detections_that_depend_on_the_batch_are_rejected_in_mixed_precision(reference):
    limits = KIT.clauses["batch_invariance"].limits
    boxes = reference.boxes.copy()
    boxes[::50, 2] += 1.1 * limits["mixed_box_p99"].number
    scores = reference.scores.copy()
    scores[::50] -= 1.1 * limits["mixed_score_p99"].number
    one_in_fifty = np.arange(len(scores)) % 50 == 0

    found = {
        "mixed_box_p99": invariance(reference, dataclasses.replace(reference, boxes=boxes), precision="mixed"),
        "mixed_score_p99": invariance(reference, with_scores(reference, scores), precision="mixed"),
        "mixed_unmatched": invariance(reference, without(reference, one_in_fifty), precision="mixed"),
        "mixed_slot_error": invariance(
            reference, reference, 1.1 * limits["mixed_slot_error"].number, precision="mixed"
        ),
    }

    assert {quantity: outside("batch_invariance", measured) for quantity, measured in found.items()} == {
        quantity: {quantity} for quantity in found
    }


def test_batches_without_one_common_detection_are_rejected_in_mixed_precision(reference):
    elsewhere = dataclasses.replace(reference, boxes=reference.boxes + 2000)

    assert outside("batch_invariance", invariance(reference, elsewhere, precision="mixed")) == {"mixed_unmatched"}


def test_a_few_images_with_outputs_of_others_are_rejected_in_mixed_precision(reference):
    images = reference.images.tolist()
    swapped = {**dict(zip(images, images, strict=True)), images[3]: images[4], images[4]: images[3]}
    order = np.array([swapped[image] for image in reference.image_ids.tolist()])

    measurement = repeat(reference, dataclasses.replace(reference, image_ids=order), precision="mixed")

    assert measurement.values == {"mixed_different_images": 2}
    assert verdict("timed_outputs", measurement).word == "rejected"
    assert {finding.split(":")[0] for finding in measurement.findings} == {f"image {images[k]}" for k in (3, 4)}


# -- overflow as the first suspect -------------------------------------------------------------------------------------


def saturated(reference):
    # One image lost what half precision cannot hold.
    scores = reference.scores.copy()
    hit = reference.image_ids == reference.image_ids[np.argmax(scores)]
    scores[hit] *= 0.6
    return with_scores(reference, scores), int(reference.image_ids[hit][0])


def test_the_image_whose_scores_change_most_is_asked_for_an_overflow_only_if_scores_disagree(reference, shaken):
    asked = []

    def overflow(image):
        asked.append(image)
        return "overflow: ReduceMeanD"

    def judged(candidate):
        pairs = paired(reference, candidate)
        return verdict("score_agreement", score_agreement(pairs, KIT.accuracy, IMAGES, overflow=overflow))

    candidate, image = saturated(reference)

    assert judged(shaken).word == "accepted"
    assert asked == []
    assert judged(candidate).suspect == "overflow: ReduceMeanD"
    assert asked == [image]
    assert judged(with_scores(reference, 1 / (1 + np.exp(-reference.scores)))).suspect == "overflow: ReduceMeanD"


def test_where_nothing_overflows_the_other_suspects_are_named(reference):
    twice = with_scores(reference, 1 / (1 + np.exp(-reference.scores)))
    nothing = without(reference, np.ones(len(reference.scores), dtype=bool))

    for candidate, suspect in ((twice, "sigmoid applied twice"), (nothing, "boxes, or images paired")):
        pairs = paired(reference, candidate)
        measurement = score_agreement(pairs, KIT.accuracy, IMAGES, overflow=lambda image: "")
        assert verdict("score_agreement", measurement).suspect.startswith(suspect)


@pytest.mark.parametrize("measure", [invariance, repeat, in_mixed_precision(invariance), in_mixed_precision(repeat)])
def test_two_passes_that_found_nothing_do_not_agree(reference, measure):
    nothing = without(reference, np.ones(len(reference.scores), dtype=bool))

    with pytest.raises(NoReferenceError, match="neither pass has a detection to compare on any of 133 images"):
        measure(nothing, nothing)
