"""The figures of every pass of a run, as a report shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from support.dataset import GroundTruth
from support.detections import Detections
from support.scoring import ApFigures, score

__all__ = ["ScoredRun", "score_run"]


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """
    Passes and their figures.

    Parameters
    ----------
    truth : GroundTruth
        Objects of the images of the run.
    detections, figures : mapping of int
        The candidate by ascending batch size.
    reference, reference_figures : Detections and ApFigures, or None
        The checkpoint on the same images.
    """

    truth: GroundTruth
    detections: Mapping[int, Detections]
    figures: Mapping[int, ApFigures]
    reference: Detections | None
    reference_figures: ApFigures | None

    @property
    def worst_batch(self) -> int:
        """The batch size of lowest AP, at which details are shown; of equals the smallest."""
        return min(self.figures, key=lambda batch: self.figures[batch].ap)

    @property
    def candidate(self) -> ApFigures:
        """Figures at that batch size."""
        return self.figures[self.worst_batch]

    @property
    def classes(self) -> tuple[int, ...]:
        """Ids of all categories, those that lost most AP against the reference first, without objects last."""
        before = self.reference_figures.by_category if self.reference_figures else {}
        changes = {key: value - before.get(key, 0.0) for key, value in self.candidate.by_category.items()}
        return tuple(sorted(changes, key=lambda key: (math.isnan(changes[key]), changes[key])))

    def category(self, category_id: int) -> str:
        """Name of a category; a model may also find categories the truth does not have."""
        names = {row["id"]: str(row["name"]) for row in self.truth.coco["categories"]}
        return names.get(category_id, f"category {category_id}")


def score_run(truth: GroundTruth, detections: Mapping[int, Detections], reference: Detections | None) -> ScoredRun:
    """
    Score every pass with the compiled scorer, so that a report of 5,000 images does not take minutes.

    Parameters
    ----------
    truth : GroundTruth
        Objects of the images of the run.
    detections : mapping of int to Detections
        The candidate by batch size; at least one.
    reference : Detections or None
        The checkpoint.

    Raises
    ------
    WrongDataError, ToolError
        As `support.scoring.score`.
    """
    ordered = {batch: detections[batch] for batch in sorted(detections)}
    return ScoredRun(
        truth=truth,
        detections=ordered,
        figures={batch: score(truth, found, "hotcoco") for batch, found in ordered.items()},
        reference=reference,
        reference_figures=None if reference is None else score(truth, reference, "hotcoco"),
    )
