"""COCO box AP of a pass, by pycocotools (the norm) or by a compiled scorer that gives the same figures."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from support.dataset import GroundTruth
from support.detections import Detections
from support.errors import ContractViolationError, ToolError, WrongDataError
from support.spec import Model

__all__ = ["FIGURES", "ApFigures", "Scorer", "check_scorable", "result_rows", "score", "score_rows"]

Scorer = Literal["hotcoco", "pycocotools"]

#: The twelve figures, in the order in which COCO's evaluation prints them.
FIGURES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)


@dataclass(frozen=True)
class ApFigures:
    """
    The twelve COCO figures of a pass, and its AP in each category, all in AP points (percent).

    NaN stands where COCO gives -1, that is where the ground truth has no object to find.

    Parameters
    ----------
    by_category : mapping of int to float
        AP over IoU 0.50 to 0.95 of every category of the ground truth, by category id.
    foreign_category_detections : int
        Detections in categories the ground truth does not have. A model of 90 outputs can give them, since COCO left
        ten ids unused; they are legal and count nowhere.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    by_category: Mapping[int, float]
    foreign_category_detections: int = 0


def score(truth: GroundTruth, detections: Detections, scorer: Scorer) -> ApFigures:
    """
    Score a pass against the ground truth; `score_rows` on the rows of the pass.

    Parameters
    ----------
    truth : GroundTruth
        The objects of the images the pass was asked for; an image without detections counts as missed.
    detections : Detections
        The pass, as `check_scorable` lets it through.
    scorer : {"hotcoco", "pycocotools"}
        Who does the work.

    Raises
    ------
    WrongDataError, ToolError
        As `score_rows`.
    """
    return score_rows(truth, result_rows(detections), scorer)


def score_rows(truth: GroundTruth, rows: NDArray[np.float64], scorer: Scorer) -> ApFigures:
    """
    Score COCO result rows with COCO's default parameters (1, 10 and 100 detections).

    Rows of equal score rank in the order given.

    Parameters
    ----------
    truth : GroundTruth
        The objects to find.
    rows : ndarray of float64, shape (N, 7)
        Image id, x, y, width, height (image pixels), score and category id.
    scorer : {"hotcoco", "pycocotools"}
        Both give the same figures; pycocotools is the norm, hotcoco is compiled.

    Raises
    ------
    WrongDataError
        If a row belongs to an image outside the truth, or the truth has no object at all.
    ToolError
        If the scorer fails.
    """
    coco = _copied(truth)
    _require_members(rows[:, 0], [image["id"] for image in coco["images"]], "the images of the ground truth")
    if all(annotation["iscrowd"] for annotation in coco["annotations"]):
        raise WrongDataError(
            f"none of the {len(coco['images'])} images has an object, so there is nothing to score",
            required="at least one annotation that is not a crowd",
            remedy="evaluate more images",
        )
    known = np.isin(rows[:, 6], truth.category_ids)
    statistics, precision = _evaluated(scorer, coco, rows[known])
    return ApFigures(
        **{name: _points(value) for name, value in zip(FIGURES, statistics, strict=True)},
        by_category=dict(zip(truth.category_ids, _category_ap(precision), strict=True)),
        foreign_category_detections=int(np.count_nonzero(~known)),
    )


def result_rows(detections: Detections) -> NDArray[np.float64]:
    """
    Write a pass as COCO result rows, in the order of the pass.

    Width and height are differences of float32, as in every result file written from a float32 tensor; taken in
    float64 they would differ in the last digits and so move a box across an IoU threshold.

    Returns
    -------
    rows : ndarray of float64, shape (N, 7)
        Image id, x, y, width, height (image pixels), score and category id.
    """
    boxes = detections.boxes
    sizes = boxes[:, 2:] - boxes[:, :2]
    columns = (detections.image_ids, boxes[:, :2], sizes, detections.scores, detections.category_ids)
    return np.column_stack([column.astype(np.float64) for column in columns])


def check_scorable(detections: Detections, image_ids: Collection[int], model: Model) -> None:
    """
    Refuse a pass that cannot be scored fairly.

    Parameters
    ----------
    detections : Detections
        The pass to check.
    image_ids : collection of int
        Ids of the images of the evaluation set.
    model : support.spec.Model
        `classes` bounds the category ids.

    Raises
    ------
    WrongDataError
        If the pass is of other images, names an image twice, or has detections in images it did not process: then
        these are not the results of this evaluation, whatever the model is worth.
    ContractViolationError
        If the candidate itself gave what no detector may give: numbers that are not finite, scores outside (0, 1],
        category ids outside 1 to `classes`, or boxes turned inside out.
    """
    _require_members(detections.images, image_ids, "the images of the evaluation set")
    _require_members(detections.image_ids, detections.images, "the images that were processed")
    _require_once(detections.images)
    _require_numbers(detections)
    low, high = detections.boxes[:, :2], detections.boxes[:, 2:]
    _refuse(
        np.any(high < low, axis=1),
        detections,
        "a box that ends before it begins",
        required="x0 <= x1 and y0 <= y1",
        remedy="look for boxes written as x, y, width, height, or for swapped axes",
    )
    _refuse(
        (detections.category_ids < 1) | (detections.category_ids > model.classes),
        detections,
        f"a category id outside 1 to {model.classes}",
        required="category id = index of the class channel + 1",
        remedy="look for shifted class ids",
    )


def _require_members(ids: NDArray[Any], known: Collection[int], where: str) -> None:
    strangers = np.setdiff1d(ids, np.fromiter(known, dtype=np.int64, count=len(known)))
    if len(strangers):
        raise WrongDataError(
            f"{len(strangers)} images are not among {where}; the first is image {strangers[0]:.0f}",
            required="detections of the images of the evaluation set and of no other",
            remedy="check that these results belong to this data set",
        )


def _require_once(images: NDArray[np.int64]) -> None:
    unique, counts = np.unique(images, return_counts=True)
    repeated = unique[counts > 1]
    if len(repeated):
        raise WrongDataError(
            f"{len(repeated)} images were processed more than once; the first is image {repeated[0]}",
            required="every image once",
            remedy="look for stale or doubled results",
        )


def _require_numbers(detections: Detections) -> None:
    scores = detections.scores
    _refuse(
        ~(np.isfinite(scores) & np.isfinite(detections.boxes).all(axis=1)),
        detections,
        "numbers that are not finite",
        required="finite boxes and scores",
        remedy="look for an overflow in half precision",
    )
    _refuse(
        (scores <= 0) | (scores > 1),
        detections,
        "a score outside (0, 1]",
        required="class logits that went through the sigmoid once",
        remedy="look for a missing sigmoid, or for heads in another order",
    )


def _refuse(bad: NDArray[np.bool_], detections: Detections, what: str, *, required: str, remedy: str) -> None:
    if not bad.any():
        return
    row = int(np.argmax(bad))
    box = ", ".join(f"{edge:g}" for edge in detections.boxes[row])
    raise ContractViolationError(
        f"{np.count_nonzero(bad)} of {len(bad)} detections have {what}; the first is in image "
        f"{detections.image_ids[row]}: score {detections.scores[row]:g}, category {detections.category_ids[row]}, "
        f"box {box}",
        required=required,
        remedy=remedy,
    )


def _copied(truth: GroundTruth) -> dict[str, Any]:
    # pycocotools writes its own keys into the annotations it is given.
    return {table: [dict(row) for row in truth.coco[table]] for table in ("images", "annotations", "categories")}


def _evaluated(
    scorer: Scorer, coco: dict[str, Any], rows: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # both print as they go
            evaluator = _EVALUATORS[scorer](coco, rows)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
    except Exception as error:
        raise ToolError(f"{scorer} failed on {len(rows)} detections: {type(error).__name__}: {error}") from error
    return np.asarray(evaluator.stats), np.asarray(evaluator.eval["precision"])


def _pycocotools(coco: dict[str, Any], rows: NDArray[np.float64]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    truth.dataset = coco
    truth.createIndex()
    if len(rows):
        found = truth.loadRes(rows)
    else:  # loadRes looks at the first detection
        found.dataset = {**coco, "annotations": []}
        found.createIndex()
    return COCOeval(truth, found, "bbox")


def _hotcoco(coco: dict[str, Any], rows: NDArray[np.float64]) -> Any:
    from hotcoco import COCO, COCOeval

    truth = COCO(coco)
    return COCOeval(truth, truth.load_res(rows), "bbox")


_EVALUATORS: Mapping[Scorer, Callable[[dict[str, Any], NDArray[np.float64]], Any]] = {
    "hotcoco": _hotcoco,
    "pycocotools": _pycocotools,
}


def _category_ap(precision: NDArray[np.float64]) -> list[float]:
    # (IoU thresholds, recalls, categories, areas, detection limits); area 0 is "all", the last limit is 100.
    columns = np.moveaxis(precision[:, :, :, 0, -1], 2, 0)
    return [_points(np.mean(column[column > -1])) if (column > -1).any() else float("nan") for column in columns]


def _points(fraction: float) -> float:
    return 100 * float(fraction) if fraction > -1 else float("nan")
