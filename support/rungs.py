"""Early rungs: a few images of every kind, looked at before all of them; they may reject a candidate and no more."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.agreement import Matches
from support.dataset import CocoDataset
from support.spec import Rungs

__all__ = ["Differences", "rung_order", "rung_sizes"]

# COCO's bounds between small, medium and large objects, in square pixels (cocoeval.py, Params.areaRng).
_BOUNDS = (32.0**2, 96.0**2)


def rung_sizes(images: int, batch: int, rules: Rungs) -> tuple[int, ...]:
    """
    Say how many images each rung has seen, those of the rungs below it included.

    What counts against the share is what the device computes: the last batch of the first rung may be padded. The
    second rung takes as many whole batches as the share leaves.

    Parameters
    ----------
    images : int
        Images of the pass.
    batch : int
        Batch size.
    rules : support.spec.Rungs
        Size of the first rung, and the part of the pass that all rungs together may cost.

    Returns
    -------
    sizes : tuple of int
        Ascending; empty where a rung would cost more than the share.

    Examples
    --------
    >>> from support.spec import load_spec
    >>> rules = load_spec("efficientdet_d0").rungs
    >>> rung_sizes(5000, 1, rules), rung_sizes(5000, 64, rules), rung_sizes(400, 1, rules)
    ((16, 150), (16, 80), ())
    """
    left = int(images * rules.share) - -(-rules.images // batch) * batch
    if left < 0:
        return ()
    more = left // batch * batch
    return (rules.images, rules.images + more) if more else (rules.images,)


def rung_order(dataset: CocoDataset, image_size: int, *, salt: str = "") -> tuple[int, ...]:
    """
    Order the images so that every beginning holds all kinds as evenly as it can.

    A kind is an orientation (portrait or not), whether the image is reduced to fit the network, and the size of its
    smallest object that is not a crowd (none, small, medium or large): 16 kinds at most, so that a fault of portrait
    images or of small objects alone has images to show itself on. Within its kind an image is drawn by a hash of its
    id, so neither the order of the annotations nor `--limit` decides by position.

    Parameters
    ----------
    dataset : CocoDataset
        The images of the run.
    image_size : int
        Side of the network's input, in pixels.
    salt : str
        Another one gives another draw.

    Returns
    -------
    image_ids : tuple of int
        Every image once.
    """
    kinds, taken = _kinds(dataset, image_size), Counter[tuple[bool, bool, int]]()
    turns = {}
    for image_id in sorted(kinds, key=lambda image_id: hashlib.sha256(f"{salt}:{image_id}".encode()).digest()):
        turns[image_id] = taken[kinds[image_id]]
        taken[kinds[image_id]] += 1
    # Stable: within a turn the images stay as they were drawn.
    return tuple(sorted(turns, key=turns.__getitem__))


def _kinds(dataset: CocoDataset, image_size: int) -> dict[int, tuple[bool, bool, int]]:
    smallest: dict[int, float] = {}
    for row in dataset.truth.coco["annotations"]:
        if not row["iscrowd"]:
            smallest[row["image_id"]] = min(row["area"], smallest.get(row["image_id"], np.inf))
    return {
        image.id: (
            image.height > image.width,
            max(image.width, image.height) > image_size,
            int(np.searchsorted(_BOUNDS, smallest[image.id])) if image.id in smallest else -1,
        )
        for image in dataset.images
    }


@dataclass(frozen=True)
class Differences:
    """
    How many detections of each image differ between reference and candidate.

    Parameters
    ----------
    images : ndarray of int64, shape (N,)
        Image ids, ascending.
    totals : ndarray of int64, shape (N,)
        Detections of either pass above the score floor, a pair counting once.
    different : ndarray of int64, shape (N,)
        Those without a partner, and pairs whose score changes by more than the tolerance.
    """

    images: NDArray[np.int64]
    totals: NDArray[np.int64]
    different: NDArray[np.int64]

    @classmethod
    def of(cls, matches: Matches, tolerance: float) -> Differences:
        """Count the differences of two matched passes; `tolerance` is a change of score."""
        images = np.unique(matches.reference.images)
        unmatched = np.concatenate(
            [matches.reference.image_ids[matches.lost], matches.candidate.image_ids[matches.surplus]]
        )
        changed = matches.image_ids[np.abs(matches.score_changes) > tolerance]

        def counted(*parts: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.bincount(np.searchsorted(images, np.concatenate(parts)), minlength=len(images))

        return cls(images, counted(unmatched, matches.image_ids), counted(unmatched, changed))

    def select(self, image_ids: Iterable[int]) -> Differences:
        """Take those of some of the images."""
        rows = np.searchsorted(self.images, np.fromiter(image_ids, np.int64))
        return Differences(self.images[rows], self.totals[rows], self.different[rows])

    def ruined(self, rules: Rungs) -> NDArray[np.int64]:
        """Images of whose detections more than a part differ, if they have enough of them to tell."""
        mostly = self.different > rules.image_share * self.totals
        return self.images[mostly & (self.totals >= rules.image_detections)]

    def values(self, rules: Rungs) -> dict[str, float]:
        """Return the numbers that the limits of a rung are for; no detection at all makes no difference."""
        return {
            "different": float(self.different.sum() / max(1, self.totals.sum())),
            "ruined_images": float(len(self.ruined(rules))),
        }
