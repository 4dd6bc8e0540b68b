import contextlib
import dataclasses
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from support.dataset import GroundTruth
from support.errors import WrongDataError
from support.report.curves import RECALLS, mean_precision, precision_curves
from support.scoring import result_rows, score
from unit.report.conftest import rows_of


def copied(truth):
    return {table: [dict(row) for row in rows] for table, rows in truth.coco.items()}


def test_the_curves_are_those_of_pycocotools(truth, reference):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copied(truth)
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(result_rows(reference)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    norm, ours = mean_precision(evaluator.eval["precision"]), precision_curves(truth, reference)
    assert np.array_equal(evaluator.params.recThrs, RECALLS)
    for name in ("every", "at_50", "at_75"):
        np.testing.assert_allclose(getattr(ours, name), getattr(norm, name), rtol=0, atol=1e-12)


def test_the_mean_of_a_curve_is_its_ap(truth, reference):
    curves, figures = precision_curves(truth, reference), score(truth, reference, "hotcoco")
    means = [100 * curve.mean() for curve in (curves.every, curves.at_50, curves.at_75)]
    assert means == pytest.approx([figures.ap, figures.ap50, figures.ap75])


def test_nothing_found_is_a_flat_curve(truth, reference):
    assert not precision_curves(truth, rows_of(reference, [])).every.any()


def test_categories_the_truth_does_not_have_count_nowhere(truth, reference):
    first = reference.category_ids == 1
    foreign = dataclasses.replace(reference, category_ids=np.where(first, 90, reference.category_ids).astype(np.int32))
    without = rows_of(reference, ~first)
    assert np.array_equal(precision_curves(truth, foreign).every, precision_curves(truth, without).every)


def test_a_truth_without_objects_has_no_curve(truth, reference):
    empty = GroundTruth({**truth.coco, "annotations": []}, truth.category_ids)
    with pytest.raises(WrongDataError, match="no category has an object"):
        precision_curves(empty, rows_of(reference, []))
