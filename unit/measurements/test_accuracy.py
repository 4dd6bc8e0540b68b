import dataclasses
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from support.bootstrap import ApInterval
from support.dataset import open_dataset
from support.detections import Detections
from support.errors import NoReferenceError, WrongDataError
from support.measurements.accuracy import (
    ScoredPass,
    class_size_guard,
    guide_drop,
    guide_floor,
    measured_drop,
    reference_ap,
    scorer_agreement,
    stage_ap,
    suspicious_gain,
)
from support.scoring import FIGURES, ApFigures, score
from support.spec import load_spec
from support.verdict import judge

ROOT = Path(__file__).resolve().parents[2]
KIT, COCO = load_spec("shapes_d0"), load_spec("efficientdet_d0")
IMAGES = KIT.dataset.image_count
STAR = 5


@pytest.fixture(scope="module")
def truth():
    return open_dataset(ROOT / "fixtures/data/shapes", KIT.dataset).truth


@pytest.fixture(scope="module")
def reference(truth):
    # Every object found a little off, and twenty weak false alarms on every image.
    rng = np.random.default_rng(0)
    rows = [
        [row["image_id"], *row["bbox"], row["category_id"]] for row in truth.coco["annotations"] if not row["iscrowd"]
    ]
    objects = np.array(rows)
    objects[:, 1:5] += rng.normal(0, 0.06, (len(objects), 4)) * objects[:, [3, 4, 3, 4]]
    alarms = np.repeat([[image["id"], 0, 0, 0, 0, 0] for image in truth.coco["images"]], 20, axis=0).astype(float)
    alarms[:, 1:5] = rng.uniform(10, 90, (len(alarms), 4))
    alarms[:, 5] = rng.choice(truth.category_ids, len(alarms))
    rows = np.concatenate([objects, alarms])
    scores = np.concatenate([rng.uniform(0.2, 1, len(objects)), rng.uniform(0.01, 0.3, len(alarms))])
    return scored(truth, detected(truth, rows, scores))


def detected(truth, rows, scores):
    order = np.lexsort((-scores, rows[:, 0]))
    rows, scores = rows[order], scores[order]
    return Detections(
        images=np.array([image["id"] for image in truth.coco["images"]], dtype=np.int64),
        image_ids=rows[:, 0].astype(np.int64),
        boxes=np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], axis=1).astype(np.float32),
        scores=scores.astype(np.float32),
        category_ids=rows[:, 5].astype(np.int32),
        anchors=np.zeros(len(rows), dtype=np.int32),
    )


def scored(truth, detections):
    return ScoredPass(detections, score(truth, detections, "hotcoco"))


def without(detections, dropped):
    columns = ("image_ids", "boxes", "scores", "category_ids", "anchors")
    return dataclasses.replace(detections, **{name: getattr(detections, name)[~dropped] for name in columns})


def areas(detections):
    return (detections.boxes[:, 2:] - detections.boxes[:, :2]).prod(axis=1)


def figures(ap, **changes):
    return dataclasses.replace(ApFigures(*[ap] * len(FIGURES), by_category={1: ap, 2: math.nan}), **changes)


def word(name, measurement, spec=KIT):
    return judge(name, spec.clauses[name], measurement).word


def limit(name, quantity, spec=KIT):
    return spec.clauses[name].limits[quantity].number


@pytest.mark.parametrize(("ap", "verdict"), [(33.35, "accepted"), (33.349, "rejected")])
def test_the_guide_floor_is_judged_as_published_figures_are_rounded(ap, verdict):
    assert word("accuracy_guide_floor", guide_floor(figures(ap), 5000, 5000), COCO) == verdict


@pytest.mark.parametrize(("ap", "verdict"), [(33.265, "accepted"), (33.263, "rejected")])
def test_the_guide_drop_is_judged_unrounded(ap, verdict):
    assert word("accuracy_guide_drop", guide_drop(figures(ap), 5000, 5000), COCO) == verdict


def test_an_ap_over_part_of_the_images_is_undetermined():
    for name, measure in (("accuracy_guide_floor", guide_floor), ("accuracy_guide_drop", guide_drop)):
        verdict = judge(name, COCO.clauses[name], measure(figures(40.0), 4999, 5000))
        assert (verdict.word, verdict.reason) == ("undetermined", "partial")


def test_an_ap_finding_tells_the_other_figures():
    assert guide_floor(figures(33.5, ap_small=12.25), 1, 1).findings == (
        "AP 33.500 (AP50 33.500, AP75 33.500, small 12.250, medium 33.500, large 33.500)",
    )


@pytest.mark.parametrize(("part", "verdict"), [(0.9901, "accepted"), (0.9899, "rejected")])
def test_a_drop_below_the_measured_reference_is_rejected(part, verdict):
    reference = figures(KIT.accuracy.quoted_ap)

    measurement = measured_drop(figures(part * reference.ap), reference, KIT.accuracy, IMAGES, IMAGES)

    assert word("accuracy_measured_drop", measurement) == verdict
    assert not measurement.informative


def test_an_interval_is_shown_and_decides_nothing():
    far = ApInterval(-0.2, -9.0, -8.0, 0.95, 1000)
    plain = measured_drop(figures(33.4), figures(33.69), COCO.accuracy, 5000, 5000)
    shown = measured_drop(figures(33.4), figures(33.69), COCO.accuracy, 5000, 5000, interval=far)

    assert word("accuracy_measured_drop", shown, COCO) == word("accuracy_measured_drop", plain, COCO) == "accepted"
    assert shown.values == plain.values
    assert "AP -0.200 from the reference, -9.000 to -8.000 in 95 % of 1000 resamples" in " ".join(shown.findings)


def test_the_measured_drop_decides_where_the_reference_matches_its_quote():
    measurement = measured_drop(figures(33.4), figures(33.69), COCO.accuracy, 5000, 5000)

    assert not measurement.informative


def test_the_measured_drop_only_informs_where_the_reference_does_not_match_its_quote():
    measurement = measured_drop(figures(33.4), figures(34.2), COCO.accuracy, 5000, 5000)

    assert word("accuracy_measured_drop", measurement, COCO) == "rejected"
    assert measurement.informative
    assert "not deciding: the reference's AP is 0.600 from the quoted 33.6, more than 0.1" in measurement.findings[-1]


def test_a_reference_that_finds_nothing_is_no_reference():
    with pytest.raises(NoReferenceError, match=r"the reference reaches AP 0\.0"):
        measured_drop(figures(33.4), figures(0.0), KIT.accuracy, IMAGES, IMAGES)


@pytest.mark.parametrize(("gain", "verdict"), [(-5.0, "accepted"), (0.2, "accepted"), (33.6, "rejected")])
def test_an_ap_far_above_the_reference_is_rejected(gain, verdict):
    assert word("suspicious_gain", suspicious_gain(figures(33.6 + gain), figures(33.6), IMAGES, IMAGES)) == verdict


@pytest.mark.parametrize("side", [1, -1])
def test_a_reference_far_from_its_quote_is_rejected_on_either_side(side):
    quoted, allowed = KIT.accuracy.quoted_ap, limit("reference_ap", "ap_difference")

    near = reference_ap(figures(quoted + side * 0.9 * allowed), KIT.accuracy, IMAGES, IMAGES)
    far = reference_ap(figures(quoted + side * 1.1 * allowed), KIT.accuracy, IMAGES, IMAGES)

    assert (word("reference_ap", near), word("reference_ap", far)) == ("accepted", "rejected")


def ladder_of(change=0.0, edit=0.0):
    ladder = {"checkpoint": 40.0, "raw": 40.0, "simplified": 40.0 + change, "candidate": 40.0 + change}
    return ladder, {"raw": 40.0, "raw, Pads edited": 40.0 + edit}


@pytest.mark.parametrize("quantity", ["ap_change", "padded_ap_change"])
@pytest.mark.parametrize(("part", "verdict"), [(0.9, "accepted"), (1.1, "rejected"), (-1.1, "rejected")])
def test_a_stage_that_changes_ap_is_rejected(quantity, part, verdict):
    change = part * limit("stage_ap", quantity)
    ladder, edited = ladder_of(change) if quantity == "ap_change" else ladder_of(edit=change)

    measurement = stage_ap(ladder, edited, pads_kept=False, compiled={}, count=IMAGES, expected=IMAGES)

    assert word("stage_ap", measurement) == verdict


def test_the_stage_that_changes_ap_most_is_the_first_suspect():
    measurement = stage_ap(*ladder_of(change=1.0), pads_kept=False, compiled={}, count=IMAGES, expected=IMAGES)

    assert measurement.suspect == "stage raw -> simplified"
    assert measurement.findings[0].startswith("ladder: checkpoint 40.0000, raw 40.0000, simplified 41.0000")


def test_the_last_step_of_a_candidate_with_edited_pads_has_the_limit_of_an_edit():
    between = (limit("stage_ap", "ap_change") + limit("stage_ap", "padded_ap_change")) / 2
    ladder, edited = ladder_of()
    ladder["candidate"] += between

    folded = stage_ap(ladder, edited, pads_kept=False, compiled={}, count=IMAGES, expected=IMAGES)
    kept = stage_ap(ladder, edited, pads_kept=True, compiled={}, count=IMAGES, expected=IMAGES)

    assert (word("stage_ap", folded), word("stage_ap", kept)) == ("rejected", "accepted")


@pytest.mark.parametrize(("part", "verdict"), [(0.9, "accepted"), (1.1, "rejected"), (-1.1, "rejected")])
def test_compiling_in_mixed_precision_has_a_limit_of_its_own(part, verdict):
    compiled = {"modified": 40.0, "compiled": 40.0 + part * limit("stage_ap", "mixed_ap_change")}

    measurement = stage_ap(*ladder_of(), pads_kept=False, compiled=compiled, count=IMAGES, expected=IMAGES)

    assert measurement.values.keys() == {"ap_change", "padded_ap_change", "mixed_ap_change"}
    assert word("stage_ap", measurement) == verdict
    assert measurement.suspect == "stage modified -> compiled"
    assert f"compiled: modified 40.0000, compiled {compiled['compiled']:.4f}" in measurement.findings


def test_kept_pads_do_not_widen_the_limit_of_compiling():
    between = (limit("stage_ap", "mixed_ap_change") + limit("stage_ap", "padded_ap_change")) / 2
    compiled = {"modified": 40.0, "compiled": 40.0 - between}

    kept = stage_ap(*ladder_of(), pads_kept=True, compiled=compiled, count=IMAGES, expected=IMAGES)

    assert word("stage_ap", kept) == "rejected"


def test_a_ladder_of_one_stage_is_refused():
    with pytest.raises(ValueError, match="have no step to measure"):
        stage_ap({"checkpoint": 40.0}, {"raw": 40.0}, pads_kept=False, compiled={}, count=IMAGES, expected=IMAGES)


def test_scorers_that_agree_are_accepted(truth, reference):
    norm = score(truth, reference.detections, "pycocotools")

    assert word("scorer_agreement", scorer_agreement(reference.figures, norm, IMAGES, IMAGES)) == "accepted"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"ar_large": 33.6 + 1e-6}, "ar_large: 33.600001 against 33.6 of pycocotools"),
        ({"by_category": {1: 33.7, 2: math.nan}}, "category 1: 33.7 against 33.6"),
        ({"ap_small": math.nan}, "ap_small: nan against 33.6"),
        ({"by_category": {1: 33.6, 2: 0.0}}, "category 2: 0.0 against nan"),
        ({"by_category": {1: 33.6, 2: math.nan, 3: 1.0}}, "category 3: 1.0 against None"),
        ({"by_category": {2: math.nan}}, "category 1: None against 33.6"),
    ],
)
def test_a_scorer_that_differs_in_any_figure_is_rejected(changes, finding):
    measurement = scorer_agreement(figures(33.6, **changes), figures(33.6), IMAGES, IMAGES)

    assert word("scorer_agreement", measurement) == "rejected"
    assert measurement.findings[0].startswith(finding)


def test_scorers_without_a_figure_do_not_agree():
    nothing = figures(math.nan)

    with pytest.raises(NoReferenceError, match="neither scorer gave a figure"):
        scorer_agreement(nothing, nothing, IMAGES, IMAGES)


def guard(truth, reference, detections):
    return class_size_guard(truth, reference, scored(truth, detections), KIT.accuracy, IMAGES)


def test_a_candidate_like_its_reference_passes_the_guard(truth, reference):
    rng = np.random.default_rng(1)
    detections = reference.detections
    shaken = dataclasses.replace(
        detections,
        scores=np.clip(detections.scores + rng.normal(0, 0.002, len(detections.scores)), 0.001, 1).astype(np.float32),
        boxes=(detections.boxes + rng.normal(0, 0.05, detections.boxes.shape)).astype(np.float32),
    )

    measurement = guard(truth, reference, shaken)

    assert word("class_size_guard", measurement) == "accepted"
    assert measurement.values["change_p_value"] == 1


def test_a_class_that_is_no_longer_found_is_rejected_and_named(truth, reference):
    detections = reference.detections

    measurement = guard(truth, reference, without(detections, detections.category_ids == STAR))

    assert word("class_size_guard", measurement) == "rejected"
    assert measurement.findings[0].startswith("class 'star' (id 5): 8")
    assert "objects lost, p=" in measurement.findings[0]
    assert measurement.suspect == "the class channel of class 'star' (id 5)"
    assert measurement.values["class_ap_drop"] == reference.figures.by_category[STAR]


def test_losing_all_small_objects_is_rejected_and_named(truth, reference):
    detections = reference.detections

    measurement = guard(truth, reference, without(detections, areas(detections) < 32**2))

    assert word("class_size_guard", measurement) == "rejected"
    assert measurement.findings[0].startswith("small objects: ")
    assert measurement.suspect == "the feature level of small objects"
    assert measurement.values["size_ap_drop"] > limit("class_size_guard", "size_ap_drop")


def test_misplaced_boxes_of_portrait_images_are_rejected_and_named(truth, reference):
    detections = reference.detections
    portrait = [image["id"] for image in truth.coco["images"] if image["height"] > image["width"]]
    boxes = detections.boxes.copy()
    boxes[np.isin(detections.image_ids, portrait)] *= 0.6

    measurement = guard(truth, reference, dataclasses.replace(detections, boxes=boxes))

    assert word("class_size_guard", measurement) == "rejected"
    assert measurement.suspect == "the geometry of portrait images"


def test_large_objects_that_are_found_in_worse_boxes_are_rejected_and_named(truth, reference):
    found = reference.detections
    boxes, sides = found.boxes.copy(), found.boxes[:, 2:] - found.boxes[:, :2]
    large = areas(found) > 96**2
    # Still more than half of the object, so that it is found.
    boxes[large, 2:] -= 0.12 * sides[large]
    measurement = guard(truth, reference, dataclasses.replace(found, boxes=boxes))
    assert measurement.values["change_p_value"] > 0.05
    assert measurement.values["size_ap_drop"] > limit("class_size_guard", "size_ap_drop")
    assert measurement.suspect == "the feature level of large objects"


def test_an_even_loss_points_at_no_group(truth, reference):
    detections = reference.detections
    measurement = guard(truth, reference, without(detections, np.arange(len(detections.scores)) % 2 == 0))

    assert word("class_size_guard", measurement) == "rejected"
    assert measurement.suspect == ""


def test_a_few_lost_objects_are_what_chance_allows(truth, reference):
    detections = reference.detections
    stars = np.flatnonzero((detections.category_ids == STAR) & (detections.scores > 0.3))

    measurement = guard(truth, reference, without(detections, np.isin(np.arange(len(detections.scores)), stars[:2])))

    assert word("class_size_guard", measurement) == "accepted"
    assert measurement.values["change_p_value"] == 1


def test_the_p_value_is_the_exact_binomial_tail_times_the_number_of_groups(truth, reference):
    detections = reference.detections
    stars = np.flatnonzero((detections.category_ids == STAR) & (detections.scores > 0.3))
    measurement = guard(truth, reference, without(detections, np.isin(np.arange(len(detections.scores)), stars[:9])))
    found = sum(row["category_id"] == STAR and not row["iscrowd"] for row in truth.coco["annotations"])
    rate = Fraction(KIT.accuracy.guard_change_rate)
    tail = sum(math.comb(found, k) * rate**k * (1 - rate) ** (found - k) for k in range(9, found + 1))

    # Ten classes, three sizes, two orientations.
    assert measurement.findings[0] == f"class 'star' (id 5): 9 of {found} objects lost, p={float(15 * tail):.2g}"
    assert measurement.values["change_p_value"] == pytest.approx(float(15 * tail), rel=1e-9)


def test_groups_too_small_to_be_judged_are_listed_and_judge_nothing(truth, reference):
    few = [image["id"] for image in truth.coco["images"]][:3]
    part, some = truth.limited(few), reference.detections.select(few)
    lost = without(some, np.ones(len(some.scores), dtype=bool))

    measurement = class_size_guard(part, scored(part, some), scored(part, lost), KIT.accuracy, IMAGES)

    assert measurement.count == 0
    assert "too few objects to be judged: class 'disc' (id 1) " in measurement.findings[-1]
    assert judge("class_size_guard", KIT.clauses["class_size_guard"], measurement).word == "undetermined"


def test_the_guard_refuses_passes_over_other_images_than_the_truth(truth, reference):
    part = reference.detections.select(reference.detections.images[1:].tolist())
    incomplete = ScoredPass(part, reference.figures)

    with pytest.raises(WrongDataError, match="image 2079 is only in truth"):
        class_size_guard(truth, incomplete, reference, KIT.accuracy, IMAGES)
    with pytest.raises(WrongDataError, match="1 images are in truth or candidate only"):
        class_size_guard(truth, reference, incomplete, KIT.accuracy, IMAGES)
