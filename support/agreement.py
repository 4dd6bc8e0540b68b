"""Which detection of one pass is which detection of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.detections import Detections
from support.errors import WrongDataError
from support.spec import Accuracy

__all__ = ["Matches", "Rows", "match", "overlapping", "require_same_images"]

#: Rows of two passes, the first of each pairing with the first of the other and so on.
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]

# Candidate rows that are compared at a time; bounds memory, since each meets at most the boxes of one image.
_CHUNK = 8192


@dataclass(frozen=True)
class Matches:
    """
    The detections of two passes over the same images, paired.

    Parameters
    ----------
    reference, candidate : Detections
        The passes.
    reference_rows, candidate_rows : ndarray of int64, shape (M,)
        Rows of the pairs in their passes, by ascending candidate row.
    lost, surplus : ndarray of int64
        Rows of the reference, and of the candidate, that should have a partner and have none.
    """

    reference: Detections
    candidate: Detections
    reference_rows: NDArray[np.int64]
    candidate_rows: NDArray[np.int64]
    lost: NDArray[np.int64]
    surplus: NDArray[np.int64]

    @property
    def unmatched(self) -> int:
        """Detections of either pass without a partner."""
        return len(self.lost) + len(self.surplus)

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """Image of each pair, shape (M,)."""
        return self.candidate.image_ids[self.candidate_rows]

    @property
    def reference_scores(self) -> NDArray[np.float64]:
        """Score of each pair in the reference, shape (M,)."""
        return self.reference.scores[self.reference_rows].astype(np.float64)

    @property
    def candidate_scores(self) -> NDArray[np.float64]:
        """Score of each pair in the candidate, shape (M,)."""
        return self.candidate.scores[self.candidate_rows].astype(np.float64)

    @property
    def score_changes(self) -> NDArray[np.float64]:
        """Score in the candidate minus score in the reference of each pair, shape (M,)."""
        return self.candidate_scores - self.reference_scores

    @property
    def box_changes(self) -> NDArray[np.float64]:
        """Largest distance of the four box edges of each pair, in image pixels, shape (M,)."""
        before = self.reference.boxes[self.reference_rows].astype(np.float64)
        after = self.candidate.boxes[self.candidate_rows].astype(np.float64)
        return np.asarray(np.abs(after - before).max(axis=1, initial=0.0))


def match(reference: Detections, candidate: Detections, accuracy: Accuracy, capacity: int) -> Matches:
    """
    Pair the detections of two passes over the same images.

    Pairs form over all detections whatever their scores (see `overlapping`); then those count in which at least one
    score reaches `accuracy.score_floor`, so a score that crosses the floor leaves no partner behind.

    A pass keeps the best `capacity` detections of an image. Where the list of one pass is full, a detection of the
    other that scores no more than the last of the list (plus `accuracy.score_tolerance`) may have been cut off, and
    is not missed.

    Parameters
    ----------
    reference, candidate : Detections
        The passes, of the same images in any order.
    accuracy : support.spec.Accuracy
        Overlap, floor and tolerance.
    capacity : int
        Most detections of an image, `max_detections` of the model.

    Raises
    ------
    WrongDataError
        If the passes are not of the same images.
    """
    require_same_images(reference=reference, candidate=candidate)
    first, second = overlapping(reference, candidate, accuracy.match_iou)
    counted = np.maximum(reference.scores[first], candidate.scores[second]) >= accuracy.score_floor
    return Matches(
        reference=reference,
        candidate=candidate,
        reference_rows=first[counted],
        candidate_rows=second[counted],
        lost=_missed(reference, first, candidate, accuracy, capacity),
        surplus=_missed(candidate, second, reference, accuracy, capacity),
    )


def overlapping(reference: Detections, candidate: Detections, iou: float) -> Rows:
    """
    Pair boxes of the same image and category that overlap, one to one, the best overlapping first.

    Boxes are widened by half a pixel on each side before they are compared, so that a box clipped to a line at the
    border of its image still overlaps itself.

    Parameters
    ----------
    reference, candidate : Detections
        Boxes to pair; scores play no part.
    iou : float
        Least intersection over union.

    Returns
    -------
    reference_rows, candidate_rows : ndarray of int64, shape (M,)
        The pairs, by ascending candidate row.
    """
    before, after = _wide_boxes(reference), _wide_boxes(candidate)
    none = np.zeros(0, dtype=np.int64)
    parts = [(none, none, np.zeros(0))]
    for first, second in _comparable(reference, candidate):
        overlap = _iou(before[:, first], after[:, second])
        near = overlap >= iou
        parts.append((first[near], second[near], overlap[near]))
    first, second, overlap = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((first, second, -overlap))
    return _one_to_one(first[order], second[order])


def require_same_images(**passes: Detections) -> None:
    """
    Refuse two passes that are not of the same images.

    Parameters
    ----------
    passes : Detections
        Two passes, by the names the message gives them.

    Raises
    ------
    WrongDataError
        Naming the first image that is in one of them only.
    """
    (one, first), (other, second) = passes.items()
    strangers = np.setxor1d(first.images, second.images)
    if len(strangers):
        owner = one if strangers[0] in first.images else other
        raise WrongDataError(
            f"{len(strangers)} images are in {one} or {other} only; image {strangers[0]} is only in {owner}",
            required="the same images in both",
            remedy="compare passes of the same data set and the same --limit",
        )


def _missed(
    own: Detections, paired: NDArray[np.int64], other: Detections, accuracy: Accuracy, capacity: int
) -> NDArray[np.int64]:
    alone = own.scores >= accuracy.score_floor
    alone &= own.scores > _cuts(own, other, capacity) + accuracy.score_tolerance
    alone[paired] = False
    return np.flatnonzero(alone)


def _cuts(own: Detections, other: Detections, capacity: int) -> NDArray[np.float64]:
    # For each detection of `own`: the last score of its image in `other` if the list there is full, else -inf.
    images = np.sort(other.images)
    place = np.searchsorted(images, other.image_ids)
    last = np.full(len(images), np.inf)
    np.minimum.at(last, place, other.scores)
    last[np.bincount(place, minlength=len(images)) < capacity] = -np.inf
    return np.asarray(last[np.searchsorted(images, own.image_ids)])


def _wide_boxes(detections: Detections) -> NDArray[np.float64]:
    # (4, N): a row for each edge, which is what makes picking millions of pairs cheap.
    return np.add(detections.boxes.T, [[-0.5], [-0.5], [0.5], [0.5]], dtype=np.float64, order="C")


def _comparable(reference: Detections, candidate: Detections) -> Iterator[Rows]:
    # All (reference row, candidate row) of the same image and category, a chunk of candidate rows at a time.
    classes = 1 + max(int(part.category_ids.max(initial=0)) for part in (reference, candidate))
    group, wanted = (part.image_ids * classes + part.category_ids for part in (reference, candidate))
    order = np.argsort(group, kind="stable")
    group = group[order]
    begin, end = np.searchsorted(group, wanted, "left"), np.searchsorted(group, wanted, "right")
    for start in range(0, len(wanted), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(wanted)))
        counts = (end - begin)[rows]
        places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield order[np.repeat(begin[rows], counts) + places], np.repeat(rows, counts)


def _iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    width = np.minimum(first[2], second[2]) - np.maximum(first[0], second[0])
    height = np.minimum(first[3], second[3]) - np.maximum(first[1], second[1])
    shared = np.clip(width, 0, None) * np.clip(height, 0, None)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second)]
    return np.asarray(shared / (areas[0] + areas[1] - shared))


def _one_to_one(first: NDArray[np.int64], second: NDArray[np.int64]) -> Rows:
    # A walk through the sorted pairs, in rounds: a pair that is the first left of both of its members is what the
    # walk would take, so all such pairs are taken at once.
    taken = [(first[:0], second[:0])]
    while len(first):
        best = _first_of(first) & _first_of(second)
        taken.append((first[best], second[best]))
        free = ~(np.isin(first, first[best]) | np.isin(second, second[best]))
        first, second = first[free], second[free]
    first, second = (np.concatenate(column) for column in zip(*taken, strict=True))
    order = np.argsort(second)
    return first[order], second[order]


def _first_of(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    mask = np.zeros(len(values), dtype=bool)
    mask[np.unique(values, return_index=True)[1]] = True
    return mask
