"""How far a difference of AP depends on the choice of images: a paired bootstrap from matches that are made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.dataset import GroundTruth
from support.detections import Detections
from support.scoring import result_rows

__all__ = ["ApInterval", "MatchedPass", "ResampledAp", "ap_interval", "resampled_ap"]

#: COCO's parameters (cocoeval.py, Params.setDetParams).
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class ApInterval:
    """
    A difference of AP and the bounds of the middle part of its resamples, in AP points.

    It says what another choice of images would change, and nothing about the noise of a run. No clause is judged by it.
    """

    difference: float
    low: float
    high: float
    confidence: float
    resamples: int

    def __str__(self) -> str:
        return (
            f"AP {self.difference:+.3f} from the reference, {self.low:+.3f} to {self.high:+.3f} in "
            f"{100 * self.confidence:g} % of {self.resamples} resamples of the images (not judged)"
        )


@dataclass(frozen=True)
class ResampledAp:
    """
    AP of a pass over its images, and over resamples of them, in points.

    Parameters
    ----------
    images : ndarray of int64, shape (N,)
        Image ids, ascending.
    seed : int
        Of the draws.
    ap : float
        With every image once.
    resamples : ndarray of float64, shape (R,)
        One for each draw; NaN where no image with an object was drawn.
    """

    images: NDArray[np.int64]
    seed: int
    ap: float
    resamples: NDArray[np.float64]


class MatchedPass:
    """
    A pass matched with the ground truth once, so that AP over any choice of its images is a matter of counting.

    Matching and counting are COCO's, for objects of all sizes: with every image once the AP is that of pycocotools. An
    image that counts twice stands for a copy that follows it under an id of its own; scoring such copies gives another
    figure only where detections of one category have equal scores, whose order is then another.

    Parameters
    ----------
    truth : GroundTruth
        Objects of the images of the pass.
    detections : Detections
        The pass, as `support.scoring.check_scorable` lets it through.

    Attributes
    ----------
    images : ndarray of int64, shape (N,)
        Image ids, ascending.
    """

    def __init__(self, truth: GroundTruth, detections: Detections) -> None:
        from support.bootstrap_kernels import FALSE, TRUE

        self.images = np.unique([image["id"] for image in truth.coco["images"]])
        self._categories = len(truth.category_ids)
        objects, found = _objects(truth, self.images), _found(truth, self.images, detections)
        kinds = _matched(found, objects, len(self.images))
        # As COCO accumulates: by category, best first, equal scores by image.
        rank = np.lexsort((found.images, -found.scores, found.categories))
        found, kinds = found.take(rank), kinds[:, rank]
        thresholds, events = np.nonzero(kinds != FALSE)
        groups = found.categories[events] * len(IOU_THRESHOLDS) + thresholds
        order = np.argsort(groups, kind="stable")
        sought = objects.take(np.flatnonzero(objects.scores > 0))
        self._counted = (
            found.images,
            _starts(found.categories, self._categories),
            events[order],
            (kinds[thresholds, events] == TRUE)[order],
            _starts(groups[order], self._categories * len(IOU_THRESHOLDS)),
            sought.images,
            _starts(sought.categories, self._categories),
        )

    def precision(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """
        Return COCO's table of precisions.

        Parameters
        ----------
        weights : ndarray of int64, shape (N,)
            How often each of `images` counts.

        Returns
        -------
        precision : ndarray of float64, shape (10, 101, K)
            By IoU threshold, recall and category; -1 where these images have no object of the category.
        """
        from support.bootstrap_kernels import fill_precision

        table = np.empty((len(IOU_THRESHOLDS), len(RECALLS), self._categories))
        fill_precision(weights, *self._counted, RECALLS, table)
        return table

    def ap(self, weights: NDArray[np.int64] | None = None) -> float:
        """AP in points with every image once, or as often as its weight says; NaN without any object."""
        table = self.precision(np.ones(len(self.images), np.int64) if weights is None else weights)
        known = table[table > -1]
        return 100 * float(np.mean(known)) if known.size else float("nan")


def resampled_ap(truth: GroundTruth, detections: Detections, *, resamples: int = 1000, seed: int = 0) -> ResampledAp:
    """
    Draw as many images as there are, with replacement, and compute AP over them, again and again.

    Parameters
    ----------
    truth : GroundTruth
        Objects of the images of the pass.
    detections : Detections
        The pass, as `support.scoring.check_scorable` lets it through.
    resamples : int
        How often.
    seed : int
        Of the draw: the same images are drawn for every pass of them.
    """
    measured = MatchedPass(truth, detections)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the kernels run without the interpreter's lock
        drawn = list(pool.map(measured.ap, _draws(len(measured.images), resamples, seed)))
    return ResampledAp(measured.images, seed, measured.ap(), np.array(drawn))


def ap_interval(reference: ResampledAp, candidate: ResampledAp, *, confidence: float = 0.95) -> ApInterval:
    """
    Compare two passes over the same images, resample by resample.

    Parameters
    ----------
    reference, candidate : ResampledAp
        Of the same images and draws.
    confidence : float
        Part of the resamples between the bounds.

    Raises
    ------
    ValueError
        If they are not of the same images, or not of the same draws.
    """
    first, second = ((len(part.resamples), part.seed, part.images.tolist()) for part in (reference, candidate))
    if first != second:
        raise ValueError("a paired bootstrap needs the same draws of the same images")
    # Images without any object may be all that was drawn.
    differences = candidate.resamples - reference.resamples
    low, high = np.nanquantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return ApInterval(candidate.ap - reference.ap, float(low), float(high), confidence, len(differences))


def _draws(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, images, images), minlength=images)


@dataclass(frozen=True)
class _Boxes:
    # Boxes as x, y, width, height; images and categories by their place among all.
    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def take(self, rows: NDArray[np.intp]) -> _Boxes:
        return _Boxes(self.images[rows], self.categories[rows], self.boxes[rows], self.scores[rows])

    def grouped(self) -> _Boxes:
        """Sort by category and image, best first; equal ones stay in their order."""
        return self.take(np.lexsort((-self.scores, self.images, self.categories)))

    def groups(self, images: int) -> NDArray[np.int64]:
        """Give each category of each image a number, ascending once the boxes are grouped."""
        return self.categories * images + self.images


def _objects(truth: GroundTruth, images: NDArray[np.int64]) -> _Boxes:
    rows = truth.coco["annotations"]
    return _Boxes(
        np.searchsorted(images, np.array([row["image_id"] for row in rows], np.int64)),
        np.searchsorted(truth.category_ids, np.array([row["category_id"] for row in rows], np.int64)),
        np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        np.array([1 - row["iscrowd"] for row in rows], np.float64),  # crowds come last
    ).grouped()


def _found(truth: GroundTruth, images: NDArray[np.int64], detections: Detections) -> _Boxes:
    rows = result_rows(detections)
    rows = rows[np.isin(rows[:, 6], truth.category_ids)]
    places = np.searchsorted(images, rows[:, 0]), np.searchsorted(truth.category_ids, rows[:, 6])
    found = _Boxes(*places, np.ascontiguousarray(rows[:, 1:5]), rows[:, 5]).grouped()
    groups = found.groups(len(images))
    rank = np.arange(len(groups)) - np.searchsorted(groups, groups)
    return found.take(np.flatnonzero(rank < MAX_DETECTIONS))


def _matched(found: _Boxes, objects: _Boxes, images: int) -> NDArray[np.int8]:
    from support.bootstrap_kernels import match_groups

    kinds = np.zeros((len(IOU_THRESHOLDS), len(found.scores)), np.int8)
    groups, starts = np.unique(found.groups(images), return_index=True)
    wanted = objects.groups(images)
    match_groups(
        found.boxes,
        np.append(starts, len(found.scores)),
        objects.boxes,
        objects.scores == 0,
        np.searchsorted(wanted, groups, "left"),
        np.searchsorted(wanted, groups, "right"),
        IOU_THRESHOLDS,
        kinds,
    )
    return kinds


def _starts(groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    # Of ascending numbers: where each of 0 to count - 1 begins, and the end.
    return np.searchsorted(groups, np.arange(count + 1))
