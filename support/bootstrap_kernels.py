"""Compiled inner loops of the bootstrap. Importing this module imports numba, so it is imported where it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["FALSE", "IGNORED", "TRUE", "fill_precision", "match_groups"]

Function = TypeVar("Function", bound=Callable[..., Any])

#: What a detection is at one IoU threshold.
FALSE, TRUE, IGNORED = np.int8(0), np.int8(1), np.int8(2)
#: Keeps COCO's precision from dividing by zero, and in the last digit of every other (cocoeval.py, accumulate).
SPACING = np.spacing(1)


def _compiled(function: Function) -> Function:
    # Without fast-math: every sum and quotient is rounded as in pycocotools.
    return cast(Function, numba.njit(nogil=True, cache=True)(function))


@_compiled
def _iou(box: NDArray[np.float64], other: NDArray[np.float64], crowd: bool) -> float:
    # bbIou of maskApi.c: a crowd is a region, so only the detection's own area counts.
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared, area = width * height, box[2] * box[3]
    return float(shared / (area if crowd else area + other[2] * other[3] - shared))


@_compiled
def match_groups(
    boxes: NDArray[np.float64],
    starts: NDArray[np.int64],
    objects: NDArray[np.float64],
    crowds: NDArray[np.bool_],
    object_starts: NDArray[np.int64],
    object_ends: NDArray[np.int64],
    thresholds: NDArray[np.float64],
    kinds: NDArray[np.int8],
) -> None:
    """
    Match detections with objects, group by group, as COCO does (cocoeval.py, evaluateImg).

    A group is one category of one image.

    Parameters
    ----------
    boxes : ndarray of float64, shape (D, 4)
        Detections as x, y, width, height in image pixels, by group, best first.
    starts : ndarray of int64, shape (M + 1,)
        Where the detections of each group begin.
    objects : ndarray of float64, shape (G, 4)
        Ground truth by group, crowds last.
    crowds : ndarray of bool, shape (G,)
        Which objects are crowds: any number of detections may match one, and are then ignored.
    object_starts, object_ends : ndarray of int64, shape (M,)
        Where the objects of each group begin and end.
    thresholds : ndarray of float64, shape (T,)
        Least intersection over union.
    kinds : ndarray of int8, shape (T, D)
        Filled with `FALSE`, `TRUE` or `IGNORED`.
    """
    for group in range(len(object_starts)):
        own = slice(object_starts[group], object_ends[group])
        found = slice(starts[group], starts[group + 1])
        for place in range(len(thresholds)):
            _match(boxes[found], objects[own], crowds[own], thresholds[place], kinds[place, found])


@_compiled
def _match(
    boxes: NDArray[np.float64],
    objects: NDArray[np.float64],
    crowds: NDArray[np.bool_],
    threshold: float,
    kinds: NDArray[np.int8],
) -> None:
    taken = np.zeros(len(objects), np.bool_)
    for detection in range(len(boxes)):
        best, found = min(threshold, 1 - 1e-10), -1
        for item in range(len(objects)):
            if taken[item] and not crowds[item]:
                continue
            if found > -1 and not crowds[found] and crowds[item]:
                break
            overlap = _iou(boxes[detection], objects[item], crowds[item])
            # Of equal overlaps the later object wins, as in COCO.
            if overlap >= best:
                best, found = overlap, item
        kinds[detection] = FALSE
        if found > -1:
            taken[found] = True
            kinds[detection] = IGNORED if crowds[found] else TRUE


@_compiled
def fill_precision(
    weights: NDArray[np.int64],
    images: NDArray[np.int64],
    starts: NDArray[np.int64],
    events: NDArray[np.int64],
    hits: NDArray[np.bool_],
    event_starts: NDArray[np.int64],
    object_images: NDArray[np.int64],
    object_starts: NDArray[np.int64],
    recalls: NDArray[np.float64],
    precision: NDArray[np.float64],
) -> None:
    """
    Fill COCO's table of precisions, every image counting as often as its weight says (cocoeval.py, accumulate).

    Precision falls at every false detection and recall rises at none, so the true ones decide the curve; false ones are
    counted as what lies before a true one and is neither true nor ignored.

    Parameters
    ----------
    weights : ndarray of int64, shape (N,)
        How often each image counts.
    images : ndarray of int64, shape (D,)
        Image of each detection: by category, best first.
    starts : ndarray of int64, shape (K + 1,)
        Where the detections of each category begin.
    events : ndarray of int64, shape (E,)
        Detections that are true or ignored, by category, IoU threshold and rank.
    hits : ndarray of bool, shape (E,)
        Which of them are true.
    event_starts : ndarray of int64, shape (K * T + 1,)
        Where the events of each category and threshold begin.
    object_images : ndarray of int64, shape (G,)
        Image of each object that is no crowd, by category.
    object_starts : ndarray of int64, shape (K + 1,)
        Where the objects of each category begin.
    recalls : ndarray of float64, shape (R,)
        Recalls at which precision is read, ascending from 0.
    precision : ndarray of float64, shape (T, R, K)
        Filled; -1 where a category has no object.
    """
    thresholds = precision.shape[0]
    reached, values = np.empty(len(events)), np.empty(len(events))
    before = np.empty(len(images), np.int64)
    for category in range(precision.shape[2]):
        wanted = 0
        for item in range(object_starts[category], object_starts[category + 1]):
            wanted += weights[object_images[item]]
        precision[:, :, category] = -1 if wanted == 0 else 0
        if wanted == 0:
            continue
        total = 0
        for detection in range(starts[category], starts[category + 1]):
            total += weights[images[detection]]
            before[detection] = total
        for threshold in range(thresholds):
            group = category * thresholds + threshold
            found, ignored, points = 0, 0, 0
            for event in range(event_starts[group], event_starts[group + 1]):
                weight = weights[images[events[event]]]
                if weight == 0:
                    continue
                if not hits[event]:
                    ignored += weight
                    continue
                found += weight
                reached[points] = found / wanted
                values[points] = found / (before[events[event]] - ignored + SPACING)
                points += 1
            best, recall = 0.0, len(recalls) - 1
            for point in range(points - 1, -1, -1):
                best = max(best, values[point])
                while recall >= 0 and recalls[recall] > reached[point]:
                    recall -= 1
                below = reached[point - 1] if point else -1.0
                while recall >= 0 and recalls[recall] > below:
                    precision[threshold, recall, category] = best
                    recall -= 1
