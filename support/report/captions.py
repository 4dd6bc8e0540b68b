"""The worst images in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from support.detections import Detections
from support.report.pictures import SHOWN_LOST
from support.report.text import shortened
from support.report.worst import WorstImage

__all__ = ["Caption", "caption"]

#: Characters of a name.
NAME_LENGTH = 40


@dataclass(frozen=True)
class Caption:
    """One image in words: a title, and what is to be seen."""

    title: str
    lines: tuple[str, ...]


def caption(worst: WorstImage, category: Callable[[int], str]) -> Caption:
    """
    Describe one of the worst images.

    Parameters
    ----------
    worst : WorstImage
        The image.
    category : callable
        Gives the name of a category by its id.
    """
    lines = [f"{len(worst.truth.scores)} objects, {worst.missed} of them missed by the candidate"]
    for what, boxes in (("Lost", worst.lost), ("New", worst.new)):
        if boxes.scores.size:
            lines.append(f"{what}: {_names(boxes, category)}")
    return Caption(f"Image {worst.image_id}, difference {worst.difference:.2f}", tuple(lines))


def _names(boxes: Detections, category: Callable[[int], str]) -> str:
    pairs = zip(boxes.category_ids.tolist(), boxes.scores.tolist(), strict=True)
    named = [f"{shortened(category(key), NAME_LENGTH)} {score:.2f}" for key, score in pairs]
    rest = len(named) - SHOWN_LOST
    return ", ".join(named[:SHOWN_LOST]) + (f" and {rest} more" if rest > 0 else "")
