"""The drawings of a report: which there are, and what each shows in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from support.evidence.model import LadderRecord
from support.report import plots
from support.report.curves import precision_curves
from support.report.scored_run import ScoredRun
from support.scoring import ApFigures
from support.spec import AcceptanceSpec, Baseline
from support.timing import ThroughputEstimate

__all__ = ["Drawing", "accuracy_drawings", "ladder_drawing", "throughput_drawing"]

#: Classes drawn, those that lost most; the table has them all.
DRAWN_CLASSES = 24


@dataclass(frozen=True)
class Drawing:
    """A plot as SVG, with its title and what it shows in words."""

    title: str
    words: str
    svg: str


def ladder_drawing(record: LadderRecord) -> Drawing:
    """Draw AP from the checkpoint to the candidate."""
    stages = {**record.stages, **record.compiled}
    values = list(stages.values())
    words = f"AP goes from {values[0]:.2f} points in the checkpoint to {values[-1]:.2f} in the candidate."
    return Drawing("AP from stage to stage", words, plots.stage_ladder(stages, name="ladder"))


def accuracy_drawings(run: ScoredRun, spec: AcceptanceSpec) -> tuple[Drawing, ...]:
    """
    Draw AP by batch size, precision over recall, and AP by object size and class.

    Parameters
    ----------
    run : ScoredRun
        What was found.
    spec : AcceptanceSpec
        Gives the limits that are drawn.
    """
    return _by_batch(run, spec), _curves(run), _by_size(run), _by_class(run)


def _by_batch(run: ScoredRun, spec: AcceptanceSpec) -> Drawing:
    reference = run.reference_figures
    lines = {} if reference is None else {"reference": reference.ap}
    lines["least after the guide's drop"] = spec.clauses["accuracy_guide_drop"].limits["ap"].number
    found = {batch: figures.ap for batch, figures in run.figures.items()}
    words = "AP of the candidate: " + ", ".join(f"{value:.2f} at batch size {batch}" for batch, value in found.items())
    return Drawing("AP by batch size", f"{words}.", plots.ap_by_batch(found, lines, name="batches"))


def _curves(run: ScoredRun) -> Drawing:
    batch = run.worst_batch
    reference = None if run.reference is None else precision_curves(run.truth, run.reference)
    svg = plots.precision_recall(precision_curves(run.truth, run.detections[batch]), reference, name="curves")
    words = f"Batch size {batch}, the mean over all classes. The area under each curve is the AP of that overlap"
    figures = run.candidate
    return Drawing(
        "Precision over recall",
        f"{words}: {figures.ap50:.2f} at IoU 0.50, {figures.ap75:.2f} at 0.75, {figures.ap:.2f} over all.",
        svg,
    )


def _by_size(run: ScoredRun) -> Drawing:
    before = None if run.reference_figures is None else _sizes(run.reference_figures)
    svg = plots.ap_by_group(_sizes(run.candidate), before, name="sizes")
    words = ", ".join(f"{name} {value:.2f}" for name, value in _sizes(run.candidate) if not math.isnan(value))
    return Drawing("AP by object size", f"Batch size {run.worst_batch}: {words}.", svg)


def _sizes(figures: ApFigures) -> list[tuple[str, float]]:
    return [("small", figures.ap_small), ("medium", figures.ap_medium), ("large", figures.ap_large)]


def _by_class(run: ScoredRun) -> Drawing:
    order = run.classes[:DRAWN_CLASSES]
    before = None if run.reference_figures is None else _named(run, run.reference_figures, order)
    svg = plots.ap_by_group(_named(run, run.candidate, order), before, name="classes")
    words = f"Batch size {run.worst_batch}; {len(order)} of {len(run.classes)} classes, those that lost most first."
    return Drawing("AP by class", words, svg)


def _named(run: ScoredRun, figures: ApFigures, order: Sequence[int]) -> list[tuple[str, float]]:
    return [(run.category(key), figures.by_category[key]) for key in order]


def throughput_drawing(estimates: Sequence[ThroughputEstimate], baselines: Sequence[Baseline]) -> Drawing:
    """Draw the measured throughput beside other tables."""
    words = ", ".join(f"{item.images_per_second:.1f} at batch size {item.batch}" for item in estimates)
    confidence = f"{estimates[0].confidence:.0%}"
    return Drawing(
        "Throughput by batch size",
        f"Images per second with their {confidence} intervals: {words}. Grey tables were timed with copies, blue ones "
        "without.",
        plots.throughput(estimates, baselines, name="throughput"),
    )
