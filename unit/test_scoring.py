import contextlib
import copy
import dataclasses
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import scoring
from support.dataset import GroundTruth, open_dataset
from support.detections import Detections
from support.errors import ContractViolationError, ToolError, WrongDataError
from support.scoring import FIGURES, check_scorable, result_rows, score, score_rows
from support.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
needs_coco_subset = pytest.mark.skipif(
    not (SHARED / "data/coco-subset").is_dir(),
    reason="needs the COCO subset beside the checkout: shared/data/coco-subset",
)
needs_published_figures = pytest.mark.skipif(
    not (SHARED / "data/coco-eval-fixtures").is_dir(),
    reason="needs the published COCO figures beside the checkout: shared/data/coco-eval-fixtures",
)
both_scorers = pytest.mark.parametrize("scorer", ["hotcoco", "pycocotools"])
SPEC = load_spec("shapes_d0")

# cocoapi 8c9bcc3, results/val2014_fake_eval_res.txt, bbox, with all digits as faster_coco_eval 33ab6097 lists them
PUBLISHED = (
    0.5045806987249628,
    0.6969727247299577,
    0.5729816669904824,
    0.5856257209410443,
    0.5193996948036719,
    0.5013978986347466,
    0.38681277964578054,
    0.5936795762842003,
    0.595352982877607,
    0.6398109626113442,
    0.5664205978994309,
    0.5642905982905982,
)

# The same, segm
PUBLISHED_MASKS = (
    0.3195452758576433,
    0.5622883972521636,
    0.29892653412086784,
    0.3873740315997838,
    0.31018272403369485,
    0.3269339071005138,
    0.2682297225711534,
    0.41544868114906375,
    0.4168394992198818,
    0.4694498622754236,
    0.37675922666197265,
    0.3814715099715099,
)


@pytest.fixture(scope="module")
def truth():
    return open_dataset(ROOT / "fixtures/data/shapes", SPEC.dataset).truth


@pytest.fixture(scope="module")
def real_truth():
    return open_dataset(SHARED / "data/coco-subset", SPEC.dataset).truth


def detected(rows, images):
    rows = np.asarray(rows, dtype=np.float64).reshape(-1, 7)
    return Detections(
        images=np.asarray(images, dtype=np.int64),
        image_ids=rows[:, 0].astype(np.int64),
        boxes=np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], axis=1).astype(np.float32),
        scores=rows[:, 5].astype(np.float32),
        category_ids=rows[:, 6].astype(np.int32),
        anchors=np.zeros(len(rows), dtype=np.int32),
    )


def image_ids(truth):
    return [image["id"] for image in truth.coco["images"]]


def truth_rows(truth, score=1.0):
    return np.array([[row["image_id"], *row["bbox"], score, row["category_id"]] for row in truth.coco["annotations"]])


def perfect(truth):
    return detected(truth_rows(truth), image_ids(truth))


def perturbed(truth, seed):
    # Three tries at each object, some of another class, with scores so coarse that most are tied.
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.repeat(truth_rows(truth), 3, axis=0))
    rows[:, 1:5] *= rng.normal(1, 0.08, (len(rows), 4))
    rows[:, 5] = np.ceil(20 * rng.uniform(0.05, 1, len(rows))) / 20
    wrong = rng.random(len(rows)) < 0.1
    rows[wrong, 6] = rng.integers(1, 91, wrong.sum())
    return detected(rows, image_ids(truth))


def tiny_truth(boxes=((10.0, 10.0, 40.0, 40.0),), crowd=0):
    annotations = [
        {"id": k, "image_id": 7, "category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": crowd}
        for k, box in enumerate(boxes, start=1)
    ]
    images = [{"id": 7, "file_name": "7.jpg", "width": 100, "height": 100}]
    categories = [{"id": 1, "name": "disc"}, {"id": 3, "name": "ring"}]
    return GroundTruth({"images": images, "annotations": annotations, "categories": categories}, (1, 3))


def assert_equal_figures(fast, norm):
    # The order in which NumPy adds up a mean depends on its version: equal but for the rounding of doubles.
    def equal(mine, theirs, name=""):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=0, err_msg=name)

    for name in FIGURES:
        equal(getattr(fast, name), getattr(norm, name), name)
    assert list(fast.by_category) == list(norm.by_category)
    equal(list(fast.by_category.values()), list(norm.by_category.values()))
    assert fast.foreign_category_detections == norm.foreign_category_detections


@both_scorers
def test_the_ground_truth_itself_scores_100(truth, scorer):
    figures = score(truth, perfect(truth), scorer)

    assert (figures.ap, figures.ar100) == (100, 100)
    assert min(figures.by_category.values()) == pytest.approx(100)


@pytest.mark.parametrize("seed", [0, 1])
def test_both_scorers_give_the_same_figures_on_tied_and_perturbed_detections(truth, seed):
    detections = perturbed(truth, seed)

    fast, norm = score(truth, detections, "hotcoco"), score(truth, detections, "pycocotools")

    assert 0 < norm.ap < 50
    assert norm.foreign_category_detections > 0
    assert_equal_figures(fast, norm)


@st.composite
def small_worlds(draw):
    """Boxes on a coarse grid: equal ones, equal overlaps and scores, crowds, no area, images without objects."""
    image = st.integers(1, 3)
    side, place = st.sampled_from([0.0, 10.0, 20.0, 40.0, 100.0]), st.sampled_from([0.0, 10.0, 20.0, 60.0])
    box = st.tuples(image, place, place, side, side)
    objects = draw(st.lists(st.tuples(box, st.sampled_from([1, 3]), st.booleans()), max_size=10))
    annotations = [
        {
            "id": number,
            "image_id": where,
            "category_id": category,
            "bbox": list(sides),
            "area": sides[2] * sides[3],
            "iscrowd": int(crowd),
        }
        for number, ((where, *sides), category, crowd) in enumerate(objects, start=2)
    ]
    # At least one object that is no crowd, so that there is something to score.
    annotations.append(tiny_truth().coco["annotations"][0] | {"image_id": 1})
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 200, "height": 200} for number in (1, 2, 3)]
    truth = GroundTruth({**tiny_truth().coco, "images": images, "annotations": annotations}, (1, 3))
    found = draw(st.lists(st.tuples(box, st.integers(1, 6), st.sampled_from([1, 2, 3])), max_size=20))
    return truth, np.array([[*row, level / 6, category] for row, level, category in found]).reshape(-1, 7)


@given(world=small_worlds())
@settings(deadline=None, max_examples=100)
def test_both_scorers_give_the_same_figures_on_any_small_world(world):
    truth, rows = world

    assert_equal_figures(score_rows(truth, rows, "hotcoco"), score_rows(truth, rows, "pycocotools"))


@both_scorers
def test_equal_scores_rank_in_the_order_of_the_pass(scorer):
    hit, miss = [7, 10, 10, 40, 40, 0.5, 1], [7, 60, 60, 30, 30, 0.5, 1]

    assert score(tiny_truth(), detected([hit, miss], [7]), scorer).ap == pytest.approx(100)
    assert score(tiny_truth(), detected([miss, hit], [7]), scorer).ap == pytest.approx(50)


@both_scorers
def test_a_pass_without_detections_scores_zero_where_there_are_objects(scorer):
    figures = score(tiny_truth(), detected([], [7]), scorer)

    assert (figures.ap, figures.ap_medium, figures.ar100, figures.by_category[1]) == (0, 0, 0, 0)
    assert np.isnan([figures.ap_small, figures.ap_large, figures.by_category[3]]).all()


@both_scorers
def test_detections_of_unused_categories_are_counted_and_change_nothing(truth, scorer):
    plain = detected(truth_rows(truth), image_ids(truth))
    foreign = [[image_ids(truth)[0], 0, 0, 50, 50, 0.99, 4]] * 3
    mixed = detected(np.concatenate([foreign, truth_rows(truth)]), image_ids(truth))

    figures = score(truth, mixed, scorer)

    assert figures.foreign_category_detections == 3
    assert dataclasses.replace(figures, foreign_category_detections=0) == score(truth, plain, scorer)


@both_scorers
def test_a_detection_inside_a_crowd_is_neither_right_nor_wrong(scorer):
    truth = tiny_truth()
    crowd = {"id": 9, "image_id": 7, "category_id": 1, "bbox": [50.0, 50.0, 50.0, 50.0], "area": 2500.0, "iscrowd": 1}
    with_crowd = GroundTruth({**truth.coco, "annotations": [*truth.coco["annotations"], crowd]}, truth.category_ids)
    rows = [[7, 60, 60, 20, 20, 0.9, 1], [7, 10, 10, 40, 40, 0.5, 1]]

    assert score(with_crowd, detected(rows, [7]), scorer).ap == pytest.approx(100)
    assert score(truth, detected(rows, [7]), scorer).ap < 100


@both_scorers
def test_scoring_prints_nothing_and_leaves_the_truth_alone(capfd, scorer):
    truth = tiny_truth()
    before = copy.deepcopy(truth.coco)

    score(truth, detected([[7, 10, 10, 40, 40, 0.5, 1]], [7]), scorer)

    assert capfd.readouterr() == ("", "")
    assert truth.coco == before


def test_width_and_height_are_differences_of_float32():
    detections = detected([[7, 0.1, 0.2, 33.3, 44.4, 0.5, 1]], [7])
    x0, y0, x1, y1 = detections.boxes[0]

    row = result_rows(detections)[0]

    assert row[3:5].tolist() == [float(x1 - x0), float(y1 - y0)]
    assert row[3] != float(x1) - float(x0)


@both_scorers
def test_detections_of_an_image_outside_the_truth_are_wrong_data(scorer):
    with pytest.raises(
        WrongDataError, match="1 images are not among the images of the ground truth; the first is image 8"
    ):
        score(tiny_truth(), detected([[8, 10, 10, 40, 40, 0.5, 1]], [7, 8]), scorer)


@pytest.mark.parametrize("truth", [tiny_truth(boxes=()), tiny_truth(crowd=1)], ids=["no objects", "only crowds"])
def test_images_without_objects_alone_cannot_be_scored(truth):
    with pytest.raises(WrongDataError, match="none of the 1 images has an object"):
        score(truth, detected([], [7]), "pycocotools")


def test_a_scorer_that_fails_is_a_tool_error(monkeypatch):
    def broken(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setitem(scoring._EVALUATORS, "hotcoco", broken)

    with pytest.raises(ToolError, match="hotcoco failed on 1 detections: RuntimeError: out of luck"):
        score(tiny_truth(), detected([[7, 10, 10, 40, 40, 0.5, 1]], [7]), "hotcoco")


def test_a_clean_pass_is_scorable(truth):
    check_scorable(perfect(truth), image_ids(truth), SPEC.model)
    check_scorable(detected([], []), image_ids(truth), SPEC.model)


def test_a_box_without_an_area_is_scorable(truth):
    first = image_ids(truth)[0]

    check_scorable(detected([[first, 5, 5, 0, 0, 0.5, 90]], [first]), image_ids(truth), SPEC.model)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("scores", np.nan, "1 of 687 detections have numbers that are not finite"),
        ("boxes", np.inf, "1 of 687 detections have numbers that are not finite"),
        ("scores", 0, r"score outside \(0, 1\]; the first is in image \d+: score 0, category"),
        ("scores", 1.5, r"score outside \(0, 1\]"),
        ("category_ids", 0, "category id outside 1 to 90"),
        ("category_ids", 91, "category id outside 1 to 90"),
        ("boxes", [9, 0, 5, 5], r"box that ends before it begins.*\n  required: x0 <= x1 and y0 <= y1"),
        ("boxes", [0, 9, 5, 5], "box that ends before it begins"),
    ],
)
def test_what_no_detector_may_give_violates_the_contract(truth, column, value, message):
    changed = getattr(perfect(truth), column).copy()
    changed[3] = value
    detections = dataclasses.replace(perfect(truth), **{column: changed})

    with pytest.raises(ContractViolationError, match=message):
        check_scorable(detections, image_ids(truth), SPEC.model)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([1, 2, 99], "1 images are not among the images of the evaluation set; the first is image 99"),
        ([1, 2, 2], "1 images were processed more than once; the first is image 2"),
        ([2], "1 images are not among the images that were processed; the first is image 1"),
    ],
)
def test_results_of_other_images_are_wrong_data(images, message):
    with pytest.raises(WrongDataError, match=message):
        check_scorable(detected([[1, 0, 0, 5, 5, 0.5, 1]], images), [1, 2, 3], SPEC.model)


@needs_published_figures
@both_scorers
def test_published_coco_figures_are_reproduced(scorer):
    folder = SHARED / "data/coco-eval-fixtures"
    coco = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    truth = GroundTruth(coco, tuple(sorted(category["id"] for category in coco["categories"])))
    rows = np.array([[row["image_id"], *row["bbox"], row["score"], row["category_id"]] for row in results])

    figures = score_rows(truth, rows, scorer)

    assert [getattr(figures, name) / 100 for name in FIGURES] == pytest.approx(PUBLISHED, rel=0, abs=1e-12)


@needs_published_figures
@both_scorers
def test_the_scorers_themselves_reproduce_the_published_figures_of_masks(scorer):
    # The suite scores boxes; masks show that the installed libraries are the ones whose figures are published.
    folder = SHARED / "data/coco-eval-fixtures"
    results = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    library = {"pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"), "hotcoco": ("hotcoco", "hotcoco")}[scorer]
    coco, evaluation = (importlib.import_module(name) for name in library)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(folder / "instances_val2014_100.json"))
        found = truth.loadRes(results) if scorer == "pycocotools" else truth.load_res(results)
        evaluator = evaluation.COCOeval(truth, found, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()

    assert list(evaluator.stats) == pytest.approx(PUBLISHED_MASKS, rel=0, abs=1e-12)


@needs_coco_subset
@both_scorers
def test_real_coco_truth_with_crowds_and_empty_images_scores_100(real_truth, scorer):
    figures = score(real_truth, perfect(real_truth), scorer)

    assert (figures.ap, figures.ar100) == pytest.approx((100, 100))


@needs_coco_subset
def test_both_scorers_give_the_same_figures_on_real_coco_truth(real_truth):
    some = real_truth.limited(image_ids(real_truth)[:80])
    detections = perturbed(some, seed=2)

    assert_equal_figures(score(some, detections, "hotcoco"), score(some, detections, "pycocotools"))
