"""The images on which a candidate is worst."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.agreement import Matches, match, overlapping
from support.dataset import GroundTruth
from support.detections import Detections
from support.spec import AcceptanceSpec

__all__ = ["WorstImage", "worst_images"]


@dataclass(frozen=True, eq=False)
class WorstImage:
    """
    One image: what is there, and what was found.

    Parameters
    ----------
    image_id : int
        Which image.
    difference : float
        Scores of all detections lost and new, and all changes of score above the tolerance of the spec; 0 without a
        reference.
    missed : int
        Objects, crowds left out, that the candidate does not find.
    truth, reference, candidate : Detections
        Objects, and detections that reach the score floor. Without a reference its part is empty.
    lost, new : Detections
        Detections of the reference, and of the candidate, that have no partner in the other.
    """

    image_id: int
    difference: float
    missed: int
    truth: Detections
    reference: Detections
    candidate: Detections
    lost: Detections
    new: Detections


def worst_images(
    truth: GroundTruth, reference: Detections | None, candidate: Detections, spec: AcceptanceSpec, count: int
) -> tuple[WorstImage, ...]:
    """
    Find the images on which the candidate differs most from the reference.

    Images that differ equally, as all do in a clean run or without a reference, rank by the objects missed.

    Parameters
    ----------
    truth : GroundTruth
        Objects of the images of the pass.
    reference, candidate : Detections
        Passes over the same images.
    spec : AcceptanceSpec
        Overlap, score floor and tolerance of a match.
    count : int
        Most images to return; those without a difference and without a missed object never are.

    Raises
    ------
    WrongDataError
        If the passes are not of the same images, or the truth has no such image.
    """
    accuracy = spec.accuracy
    # Without a reference the candidate meets itself, which shows no difference.
    matches = match(candidate if reference is None else reference, candidate, accuracy, spec.model.max_detections)
    objects, after = _objects(truth), _reaching(candidate, accuracy.score_floor)
    before = _rows(after, np.zeros(0, np.int64)) if reference is None else _reaching(reference, accuracy.score_floor)
    alone = np.setdiff1d(np.arange(objects.scores.size), overlapping(objects, after, accuracy.match_iou)[0])
    missed = _sums(candidate.images, objects.image_ids[alone], np.ones(alone.size))
    differences = _differences(matches, accuracy.score_tolerance)
    order = np.lexsort((candidate.images, -missed, -differences))[:count]
    lost, new = _rows(matches.reference, matches.lost), _rows(candidate, matches.surplus)
    return tuple(
        WorstImage(
            image_id=(image := int(candidate.images[place])),
            difference=float(differences[place]),
            missed=int(missed[place]),
            truth=objects.of(image),
            reference=before.of(image),
            candidate=after.of(image),
            lost=lost.of(image),
            new=new.of(image),
        )
        for place in order
        if differences[place] or missed[place]
    )


def _objects(truth: GroundTruth) -> Detections:
    rows = [row for row in truth.coco["annotations"] if not row["iscrowd"]]
    corners = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Detections(
        images=np.array([image["id"] for image in truth.coco["images"]], np.int64),
        image_ids=np.array([row["image_id"] for row in rows], np.int64),
        boxes=corners.astype(np.float32),
        scores=np.ones(len(rows), np.float32),
        category_ids=np.array([row["category_id"] for row in rows], np.int32),
        anchors=np.zeros(len(rows), np.int32),
    )


def _differences(matches: Matches, tolerance: float) -> NDArray[np.float64]:
    changes = np.abs(matches.score_changes)
    large = changes > tolerance
    before, after = matches.reference, matches.candidate
    ids = before.image_ids[matches.lost], after.image_ids[matches.surplus], matches.image_ids[large]
    weights = before.scores[matches.lost], after.scores[matches.surplus], changes[large]
    return _sums(after.images, np.concatenate(ids), np.concatenate(weights))


def _sums(images: NDArray[np.int64], ids: NDArray[np.int64], weights: NDArray[np.floating]) -> NDArray[np.float64]:
    # Sum of the weights of each image, in the order of `images`; ids of other images count nowhere.
    order = np.argsort(images)
    known = np.isin(ids, images)
    places = order[np.searchsorted(images[order], ids[known])]
    return np.bincount(places, weights[known], minlength=len(images)).astype(np.float64)


def _reaching(detections: Detections, floor: float) -> Detections:
    return _rows(detections, np.flatnonzero(detections.scores >= floor))


def _rows(detections: Detections, rows: NDArray[np.integer]) -> Detections:
    columns = ("image_ids", "boxes", "scores", "category_ids", "anchors")
    return dataclasses.replace(detections, **{name: getattr(detections, name)[rows] for name in columns})
