import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bootstrap import MatchedPass, ResampledAp, ap_interval, resampled_ap
from support.dataset import GroundTruth, open_dataset
from support.detections import Detections
from support.scoring import result_rows, score
from support.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
needs_published_figures = pytest.mark.skipif(
    not (SHARED / "data/coco-eval-fixtures").is_dir(),
    reason="needs the published COCO figures beside the checkout: shared/data/coco-eval-fixtures",
)


@pytest.fixture(scope="module")
def truth():
    return open_dataset(ROOT / "fixtures/data/shapes", load_spec("shapes_d0").dataset).truth


def image_ids(truth):
    return [image["id"] for image in truth.coco["images"]]


def detected(rows, images):
    rows = np.asarray(rows, np.float64).reshape(-1, 7)
    return Detections(
        images=np.asarray(images, np.int64),
        image_ids=rows[:, 0].astype(np.int64),
        boxes=np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], axis=1).astype(np.float32),
        scores=rows[:, 5].astype(np.float32),
        category_ids=rows[:, 6].astype(np.int32),
        anchors=np.zeros(len(rows), np.int32),
    )


# Tries at every object, crowds too; `levels` makes scores coarse, so that many are equal.
def perturbed(truth, seed, tries=2, levels=None, spread=0.1):
    rng = np.random.default_rng(seed)
    rows = [[row["image_id"], *row["bbox"], 0, row["category_id"]] for row in truth.coco["annotations"]]
    rows = rng.permutation(np.repeat(np.array(rows, np.float64).reshape(-1, 7), tries, axis=0))
    rows[:, 1:5] *= rng.normal(1, spread, (len(rows), 4)).clip(0.5, 2)
    rows[:, 5] = rng.permutation(np.linspace(0.05, 0.95, len(rows)))
    if levels is not None:
        rows[:, 5] = np.ceil(levels * rows[:, 5]) / levels
    wrong = rng.random(len(rows)) < 0.1
    rows[wrong, 6] = rng.choice([*truth.category_ids, 90], wrong.sum())
    return detected(rows, image_ids(truth))


def precision_of_pycocotools(truth, detections):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        norm = COCO()
        norm.dataset = {table: [dict(row) for row in truth.coco[table]] for table in truth.coco}
        norm.createIndex()
        evaluator = COCOeval(norm, norm.loadRes(result_rows(detections)), "bbox")
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][:, :, :, 0, -1]


@pytest.mark.parametrize("levels", [None, 10])
def test_every_image_once_gives_the_table_of_pycocotools_to_the_last_bit(truth, levels):
    detections = perturbed(truth, seed=3, tries=3, levels=levels)
    measured = MatchedPass(truth, detections)

    table = measured.precision(np.ones(len(measured.images), np.int64))

    np.testing.assert_array_equal(table, precision_of_pycocotools(truth, detections))
    assert measured.ap() == score(truth, detections, "pycocotools").ap


@needs_published_figures
def test_the_published_detections_of_coco_give_the_table_of_pycocotools():
    folder = SHARED / "data/coco-eval-fixtures"
    whole = json.loads((folder / "instances_val2014_100.json").read_text())
    coco = {table: whole[table] for table in ("images", "annotations", "categories")}
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    truth = GroundTruth(coco, tuple(sorted(category["id"] for category in coco["categories"])))
    rows = [[row["image_id"], *row["bbox"], row["score"], row["category_id"]] for row in results]
    detections = detected(rows, image_ids(truth))
    measured = MatchedPass(truth, detections)

    table = measured.precision(np.ones(len(measured.images), np.int64))

    np.testing.assert_array_equal(table, precision_of_pycocotools(truth, detections))
    # The published figure is of float64 boxes; rounding moves some of them across a threshold.
    assert measured.ap() == pytest.approx(50.45806987249628, abs=0.1)


def test_more_than_100_detections_of_a_category_are_cut_as_by_pycocotools(truth):
    first = truth.coco["annotations"][0]
    few = truth.limited([first["image_id"]])
    rows = [[first["image_id"], *first["bbox"], (200 - k) / 201, first["category_id"]] for k in range(120)]
    for row in rows[:110]:
        row[1] += 500
    detections = detected(rows, image_ids(few))
    measured = MatchedPass(few, detections)

    assert measured.ap() == 0
    np.testing.assert_array_equal(measured.precision(np.ones(1, np.int64)), precision_of_pycocotools(few, detections))


def test_without_any_object_there_is_no_ap(truth):
    measured = MatchedPass(truth, perturbed(truth, seed=1))

    assert np.isnan(measured.ap(np.zeros(len(measured.images), np.int64)))


# -- small worlds ------------------------------------------------------------------------------------------------------

CATEGORIES = (1, 3, 7)


@st.composite
def worlds(draw):
    """Few images on a coarse grid: equal boxes, equal overlaps, crowds, boxes without area, images without objects."""
    ids = draw(st.lists(st.integers(1, 90), min_size=1, max_size=4, unique=True))
    side, place = st.integers(0, 4).map(lambda cells: 10.0 * cells), st.integers(0, 5).map(lambda cells: 10.0 * cells)
    box = st.tuples(st.sampled_from(ids), place, place, side, side)
    objects = draw(st.lists(st.tuples(box, st.sampled_from(CATEGORIES), st.booleans()), min_size=1, max_size=12))
    found = draw(
        st.lists(st.tuples(box, st.integers(1, 8), st.sampled_from((*CATEGORIES, 2))), min_size=1, max_size=25)
    )
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": list(sides),
            "area": sides[2] * sides[3],
            "iscrowd": int(crowd and number > 1),
        }
        for number, ((image, *sides), category, crowd) in enumerate(objects, start=1)
    ]
    images = [{"id": image, "file_name": f"{image}.jpg", "width": 100, "height": 100} for image in ids]
    categories = [{"id": category, "name": str(category)} for category in CATEGORIES]
    rows = [[*box, score / 8, category] for box, score, category in found]
    tables = {"images": images, "annotations": annotations, "categories": categories}
    return GroundTruth(tables, CATEGORIES), detected(rows, ids)


@given(world=worlds())
@settings(deadline=None, max_examples=60)
def test_any_small_world_gives_the_table_of_pycocotools(world):
    truth, detections = world
    measured = MatchedPass(truth, detections)

    table = measured.precision(np.ones(len(measured.images), np.int64))

    np.testing.assert_array_equal(table, precision_of_pycocotools(truth, detections))


# Copies of an image follow it under ids of their own.
def repeated(truth, detections, weights):
    most = 1 + int(weights.max())
    images, annotations, rows = [], [], []
    for image, weight in zip(sorted(image_ids(truth)), weights, strict=True):
        own = result_rows(detections.select([image]))
        for copy in range(int(weight)):
            twin = image * most + copy
            images.append({"id": twin, "file_name": f"{twin}.jpg", "width": 100, "height": 100})
            for row in truth.coco["annotations"]:
                if row["image_id"] == image:
                    annotations.append({**row, "id": len(annotations) + 1, "image_id": twin})
            rows.append(np.column_stack([np.full(len(own), twin), own[:, 1:]]))
    coco = {"images": images, "annotations": annotations, "categories": truth.coco["categories"]}
    return GroundTruth(coco, truth.category_ids), detected(np.concatenate(rows), [image["id"] for image in images])


@pytest.mark.parametrize("seed", range(4))
def test_a_resample_gives_what_scoring_the_copies_gives(truth, seed):
    few = truth.limited(image_ids(truth)[20 * seed : 20 * seed + 20])
    detections = perturbed(few, seed)
    weights = np.bincount(np.random.default_rng(seed).integers(0, 20, 20), minlength=20)
    assert weights.min() == 0
    assert weights.max() >= 2

    copies = score(*repeated(few, detections, weights), "pycocotools")

    assert MatchedPass(few, detections).ap(weights) == pytest.approx(copies.ap, rel=1e-12)


def test_the_scores_of_copies_are_what_the_proof_rests_on(truth):
    few = truth.limited(image_ids(truth)[:20])
    detections, weights = perturbed(few, seed=0), np.ones(20, np.int64)
    weights[:2] = 0, 2

    copies = score(*repeated(few, detections, weights), "pycocotools")

    assert MatchedPass(few, detections).ap() != pytest.approx(copies.ap, rel=1e-6)


# -- the interval ------------------------------------------------------------------------------------------------------


def test_a_pass_compared_with_itself_has_no_difference(truth):
    once = resampled_ap(truth, perturbed(truth, seed=1), resamples=20)

    found = ap_interval(once, once)

    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert np.ptp(once.resamples) > 0.5


def test_the_interval_holds_the_difference_and_is_the_same_again(truth):
    first, second = perturbed(truth, seed=1), perturbed(truth, seed=2, spread=0.12)

    found = [
        ap_interval(resampled_ap(truth, first, resamples=200), resampled_ap(truth, second, resamples=200))
        for _ in range(2)
    ]

    assert found[0] == found[1]
    assert found[0].low < found[0].difference < found[0].high
    assert found[0].difference == pytest.approx(
        score(truth, second, "hotcoco").ap - score(truth, first, "hotcoco").ap, abs=1e-9
    )
    assert str(found[0]).endswith("in 95 % of 200 resamples of the images (not judged)")


def test_pairing_makes_the_interval_narrow(truth):
    plain = perturbed(truth, seed=1)
    scores = plain.scores * np.random.default_rng(0).uniform(0.97, 1, len(plain.scores)).astype(np.float32)
    near = Detections(plain.images, plain.image_ids, plain.boxes, scores, plain.category_ids, plain.anchors)
    once, again = (resampled_ap(truth, detections, resamples=100) for detections in (plain, near))

    found = ap_interval(once, again)

    assert found.high - found.low < np.ptp(np.quantile(once.resamples, [0.025, 0.975])) / 4


def test_other_draws_and_other_images_cannot_be_paired(truth):
    detections = perturbed(truth, seed=1)
    some = image_ids(truth)[:60]
    once = resampled_ap(truth, detections, resamples=5)
    others = (
        resampled_ap(truth, detections, resamples=5, seed=1),
        resampled_ap(truth, detections, resamples=6),
        resampled_ap(truth.limited(some), detections.select(some), resamples=5),
    )
    for other in others:
        with pytest.raises(ValueError, match="the same draws of the same images"):
            ap_interval(once, other)


def test_draws_without_any_object_are_left_out():
    found = [ResampledAp(np.array([1]), 0, 40.0, np.array([np.nan, 40.0, 41.0])) for _ in range(2)]

    assert ap_interval(*found).low == 0


def test_the_interval_covers_the_difference_of_the_world_it_is_drawn_from(truth):
    # The kit is the world; sets of 40 images drawn from it are what one sees of it.
    rng = np.random.default_rng(4)
    first, second = MatchedPass(truth, perturbed(truth, seed=1)), MatchedPass(truth, perturbed(truth, seed=2))
    true, images, covered = second.ap() - first.ap(), len(first.images), 0
    for _ in range(40):
        seen = rng.integers(0, images, 40)
        drawn = [np.bincount(seen[rng.integers(0, 40, 40)], minlength=images) for _ in range(80)]
        low, high = np.quantile([second.ap(weights) - first.ap(weights) for weights in drawn], [0.025, 0.975])
        covered += low <= true <= high

    assert 33 <= covered <= 40
