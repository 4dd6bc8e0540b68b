"""Measurements on AP: the guide's rules, drops and gains against the reference, and what an average hides."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from support.agreement import overlapping, require_same_images
from support.bootstrap import ApInterval
from support.dataset import GroundTruth
from support.detections import Detections
from support.errors import NoReferenceError
from support.scoring import FIGURES, ApFigures
from support.spec import Accuracy
from support.verdict import Measurement

__all__ = [
    "ScoredPass",
    "class_size_guard",
    "guide_drop",
    "guide_floor",
    "measured_drop",
    "reference_ap",
    "scorer_agreement",
    "stage_ap",
    "suspicious_gain",
]

# What a figure that only one of two scorers has counts as: the whole scale of AP, so no limit lets it pass.
_WHOLE_SCALE = 100.0

# COCO's bounds between small, medium and large objects, in square pixels (cocoeval.py, Params.areaRng).
_SMALL, _MEDIUM = 32.0**2, 96.0**2

# Where to look for what a group of objects loses.
_WHERE = {"class": "the class channel", "size": "the feature level", "orientation": "the geometry"}
# Losses that are likelier than this in a clean run point nowhere.
_BY_CHANCE = 0.05


@dataclass(frozen=True)
class ScoredPass:
    """The detections of a pass and the figures they reach."""

    detections: Detections
    figures: ApFigures


def guide_floor(figures: ApFigures, count: int, expected: int) -> Measurement:
    """
    Measure the AP the guide publishes; its limit says how the figure is rounded.

    Parameters
    ----------
    figures : ApFigures
        Of the candidate.
    count, expected : int
        Images that were scored, and images of the whole set.
    """
    return Measurement({"ap": figures.ap}, count, expected, findings=(_summary("AP", figures),))


def guide_drop(figures: ApFigures, count: int, expected: int) -> Measurement:
    """
    Measure the unrounded AP that may lie a given part below the quoted one.

    Parameters
    ----------
    figures : ApFigures
        Of the candidate.
    count, expected : int
        Images that were scored, and images of the whole set.
    """
    return Measurement({"ap": figures.ap}, count, expected, findings=(_summary("AP", figures),))


def measured_drop(
    figures: ApFigures,
    reference: ApFigures,
    accuracy: Accuracy,
    count: int,
    expected: int,
    *,
    interval: ApInterval | None = None,
) -> Measurement:
    """
    Measure AP as a part of the AP this very checkpoint reaches under the same pre- and post-processing.

    Informative only where the spec asks for it "when-reference-matches-quote" and the reference does not: the guide's
    own figure would then fail against the better reference.

    Parameters
    ----------
    figures, reference : ApFigures
        Of the candidate and of the reference, over the same images.
    accuracy : support.spec.Accuracy
        The quoted AP, its tolerance and the rule.
    count, expected : int
        Images that were scored, and images of the whole set.
    interval : ApInterval, optional
        What other images would give; shown, and never judged.

    Raises
    ------
    NoReferenceError
        If the reference finds nothing.
    """
    if not reference.ap > 0:
        raise NoReferenceError(
            f"the reference reaches AP {reference.ap}",
            required="an AP above 0",
            remedy="check the reference's checkpoint",
        )
    findings = [_summary("candidate: AP", figures), _summary("reference: AP", reference)]
    findings += [] if interval is None else [str(interval)]
    distance = abs(reference.ap - accuracy.quoted_ap)
    informative = accuracy.measured_drop != "required" and distance > accuracy.quoted_tolerance
    if informative:
        findings.append(
            f"not deciding: the reference's AP is {distance:.3f} from the quoted {accuracy.quoted_ap}, more than "
            f"{accuracy.quoted_tolerance}, so the quote belongs to another checkpoint or evaluation"
        )
    ratio = {"ap_ratio": figures.ap / reference.ap}
    return Measurement(ratio, count, expected, findings=tuple(findings), informative=informative)


def suspicious_gain(figures: ApFigures, reference: ApFigures, count: int, expected: int) -> Measurement:
    """
    Measure how far the candidate's AP lies above the reference's; negative where it lies below.

    Parameters
    ----------
    figures, reference : ApFigures
        Of the candidate and of the reference, over the same images.
    count, expected : int
        Images that were scored, and images of the whole set.
    """
    findings = (_summary("candidate: AP", figures), _summary("reference: AP", reference))
    return Measurement({"ap_gain": figures.ap - reference.ap}, count, expected, findings=findings)


def reference_ap(figures: ApFigures, accuracy: Accuracy, count: int, expected: int) -> Measurement:
    """
    Measure how far the checkpoint's own AP is from the quoted one.

    Parameters
    ----------
    figures : ApFigures
        Of the reference.
    accuracy : support.spec.Accuracy
        The quoted AP.
    count, expected : int
        Images that were scored, and images of the whole set.
    """
    difference = {"ap_difference": abs(figures.ap - accuracy.quoted_ap)}
    return Measurement(difference, count, expected, findings=(_summary(f"quoted {accuracy.quoted_ap}: AP", figures),))


def stage_ap(
    ladder: Mapping[str, float],
    edited: Mapping[str, float],
    *,
    pads_kept: bool,
    compiled: Mapping[str, float],
    count: int,
    expected: int,
) -> Measurement:
    """
    Measure the largest change of AP from one stage to the next, and what the edit of the Pads costs.

    Parameters
    ----------
    ladder : mapping of str to float
        AP in points by stage, from the checkpoint to the ONNX that is deployed.
    edited : mapping of str to float
        AP in points of a graph that keeps its -inf Pads, and of the same graph after their edit.
    pads_kept : bool
        Whether the candidate's own Pads were edited; the last step of the ladder then is such an edit too.
    compiled : mapping of str to float
        AP in points of the ONNX that is deployed and of the model compiled from it in mixed precision; empty where it
        is deployed as it is, or compiled in full precision.
    count, expected : int
        Images that were scored, and images of the whole set.

    Raises
    ------
    ValueError
        If there is no step to measure.
    """
    steps, edits = _steps(ladder), _steps(edited)
    if pads_kept:
        name, change = steps.popitem()
        edits[name] = change
    if not steps or not edits:
        raise ValueError(f"ladders of {list(ladder)} and {list(edited)} have no step to measure")
    compilation = _steps(compiled)
    everything = {**steps, **edits, **compilation}
    worst = max(everything, key=everything.__getitem__)
    values = {"ap_change": max(steps.values()), "padded_ap_change": max(edits.values())}
    if compilation:
        values["mixed_ap_change"] = max(compilation.values())
    return Measurement(
        values,
        count,
        expected,
        variant="mixed" if compilation else "",
        findings=(
            f"ladder: {', '.join(f'{name} {value:.4f}' for name, value in ladder.items())}",
            f"edit of the Pads: {', '.join(f'{name} {value:.4f}' for name, value in edited.items())}",
            *(
                [f"compiled: {', '.join(f'{name} {value:.4f}' for name, value in compiled.items())}"]
                if compiled
                else []
            ),
            f"largest change {everything[worst]:.4f} at {worst}",
        ),
        suspect=f"stage {worst}",
    )


def _steps(ladder: Mapping[str, float]) -> dict[str, float]:
    return {f"{before} -> {after}": abs(ladder[after] - ladder[before]) for before, after in itertools.pairwise(ladder)}


def scorer_agreement(fast: ApFigures, norm: ApFigures, count: int, expected: int) -> Measurement:
    """
    Measure the largest difference between two scorers over all figures and categories.

    A figure only one of them has (the other gave -1) counts as 100 points. Figures neither has, because the truth
    has no such object, are not compared.

    Parameters
    ----------
    fast, norm : ApFigures
        Of the same detections, by the scorer that does the work and by pycocotools.
    count, expected : int
        Images that were scored, and images of the whole set.

    Raises
    ------
    NoReferenceError
        If there is no figure to compare.
    """
    ours, theirs = _all_figures(fast), _all_figures(norm)
    compared = {
        name: difference
        for name in dict.fromkeys([*theirs, *ours])
        if not math.isnan(difference := _difference(ours.get(name, math.nan), theirs.get(name, math.nan)))
    }
    if not compared:
        raise NoReferenceError("neither scorer gave a figure", required="at least one category with objects")
    worst = sorted((name for name in compared if compared[name] > 0), key=lambda name: -compared[name])[:5]
    return Measurement(
        {"ap_difference": max(compared.values())},
        count,
        expected,
        findings=tuple(f"{name}: {ours.get(name)} against {theirs.get(name)} of pycocotools" for name in worst),
    )


def class_size_guard(
    truth: GroundTruth, reference: ScoredPass, candidate: ScoredPass, accuracy: Accuracy, expected: int
) -> Measurement:
    """
    Measure what single classes, object sizes and image orientations lose.

    An object is *found* by a pass if a detection of its class that reaches the score floor overlaps it (one detection
    finds one object, the best overlapping first). In each group the objects that the reference found and the
    candidate does not are counted; if a clean candidate loses each with probability `guard_change_rate`, their number
    is binomial, and the p-value is the upper tail, times the number of groups (Bonferroni). Groups in which the
    reference found fewer than `guard_minimum_objects` are not judged; if none is left, `count` is 0.

    Parameters
    ----------
    truth : GroundTruth
        Objects of the images of both passes; crowds are left out.
    reference, candidate : ScoredPass
        Passes over the same images.
    accuracy : support.spec.Accuracy
        Overlap, floor, change rate and minimum.
    expected : int
        Images of the whole set.

    Raises
    ------
    WrongDataError
        If truth, reference and candidate are not of the same images.
    """
    objects = _Objects.of(truth)
    losses = _losses(objects, reference.detections, candidate.detections, accuracy)
    judged = [loss for loss in losses if loss.found >= accuracy.guard_minimum_objects]
    p_values = {loss.group.name: min(1.0, len(judged) * _tail(loss, accuracy.guard_change_rate)) for loss in judged}
    judged.sort(key=lambda loss: p_values[loss.group.name])
    drops = _ap_drops(objects, reference.figures, candidate.figures, accuracy.guard_minimum_objects)
    return Measurement(
        {
            "change_p_value": min(p_values.values(), default=1.0),
            "class_ap_drop": max(drops["class"].values(), default=0.0),
            "size_ap_drop": max(drops["size"].values(), default=0.0),
        },
        len(candidate.detections.images) if judged else 0,
        expected,
        findings=tuple(_guard_findings(losses, judged, p_values, drops)),
        suspect=_guard_suspect(losses, p_values, drops),
    )


@dataclass(frozen=True)
class _Group:
    """Objects with something in common; `key` leads to their AP in `_group_ap`."""

    kind: Literal["class", "size", "orientation"]
    key: str
    name: str
    members: NDArray[np.bool_]


@dataclass(frozen=True)
class _Loss:
    """How many objects of a group the reference found, and how many of these the candidate does not."""

    group: _Group
    found: int
    lost: int


@dataclass(frozen=True)
class _Objects:
    """The objects of a ground truth as boxes, and the groups they belong to."""

    boxes: Detections
    groups: Sequence[_Group]

    @classmethod
    def of(cls, truth: GroundTruth) -> _Objects:
        rows = [row for row in truth.coco["annotations"] if not row["iscrowd"]]
        corners = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes = Detections(
            images=np.array([image["id"] for image in truth.coco["images"]], dtype=np.int64),
            image_ids=np.array([row["image_id"] for row in rows], dtype=np.int64),
            boxes=corners.astype(np.float32),
            scores=np.ones(len(rows), dtype=np.float32),
            category_ids=np.array([row["category_id"] for row in rows], dtype=np.int32),
            anchors=np.zeros(len(rows), dtype=np.int32),
        )
        return cls(boxes, [*_classes(truth, boxes), *_sizes(rows), *_orientations(truth, rows)])

    def found_by(self, detections: Detections, accuracy: Accuracy) -> NDArray[np.bool_]:
        """Which of the objects a pass finds."""
        strong = detections.scores >= accuracy.score_floor
        columns = ("image_ids", "boxes", "scores", "category_ids", "anchors")
        kept = dataclasses.replace(detections, **{name: getattr(detections, name)[strong] for name in columns})
        found = np.zeros(len(self.boxes.scores), dtype=bool)
        found[overlapping(self.boxes, kept, accuracy.match_iou)[0]] = True
        return found


def _losses(objects: _Objects, reference: Detections, candidate: Detections, accuracy: Accuracy) -> list[_Loss]:
    require_same_images(truth=objects.boxes, reference=reference)
    require_same_images(truth=objects.boxes, candidate=candidate)
    found = objects.found_by(reference, accuracy)
    lost = found & ~objects.found_by(candidate, accuracy)
    return [
        _Loss(group, int((found & group.members).sum()), int((lost & group.members).sum())) for group in objects.groups
    ]


def _classes(truth: GroundTruth, boxes: Detections) -> list[_Group]:
    return [
        _Group("class", str(row["id"]), f"class {row['name']!r} (id {row['id']})", boxes.category_ids == row["id"])
        for row in truth.coco["categories"]
    ]


def _sizes(rows: Sequence[Mapping[str, Any]]) -> list[_Group]:
    areas = np.array([row["area"] for row in rows])
    return [
        _Group("size", "small", "small objects", areas <= _SMALL),
        _Group("size", "medium", "medium objects", (areas > _SMALL) & (areas <= _MEDIUM)),
        _Group("size", "large", "large objects", areas > _MEDIUM),
    ]


def _orientations(truth: GroundTruth, rows: Sequence[Mapping[str, Any]]) -> list[_Group]:
    leaning = {image["id"]: image["height"] - image["width"] for image in truth.coco["images"]}
    excess = np.array([leaning[row["image_id"]] for row in rows])
    return [
        _Group("orientation", "portrait", "portrait images", excess > 0),
        _Group("orientation", "landscape", "landscape images", excess < 0),
    ]


def _tail(loss: _Loss, rate: float) -> float:
    # P(X >= lost) for X binomial(found, rate): the first term from the log of its definition, the others from the
    # ratio of neighbours, summed in logarithms because the terms may be as small as 1e-300.
    n, k = loss.found, loss.lost
    first = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    first += k * math.log(rate) + (n - k) * math.log1p(-rate)
    i = np.arange(k, n)
    steps = np.log((n - i) / (i + 1)) + math.log(rate) - math.log1p(-rate)
    return min(1.0, float(np.exp(first + np.concatenate([[0.0], np.cumsum(steps)])).sum()))


def _ap_drops(
    objects: _Objects, reference: ApFigures, candidate: ApFigures, minimum: int
) -> dict[str, dict[str, float]]:
    before, after = _group_ap(reference), _group_ap(candidate)
    return {
        kind: {
            group.name: before[group.key] - after[group.key]
            for group in objects.groups
            if group.kind == kind and group.members.sum() >= minimum
        }
        for kind in ("class", "size")
    }


def _group_ap(figures: ApFigures) -> dict[str, float]:
    by_category = {str(category): value for category, value in figures.by_category.items()}
    return {**by_category, "small": figures.ap_small, "medium": figures.ap_medium, "large": figures.ap_large}


def _guard_findings(
    losses: Sequence[_Loss],
    judged: Sequence[_Loss],
    p_values: Mapping[str, float],
    drops: Mapping[str, Mapping[str, float]],
) -> list[str]:
    worst = [
        f"{loss.group.name}: {loss.lost} of {loss.found} objects lost, p={p_values[loss.group.name]:.2g}"
        for loss in judged
        if loss.lost
    ][:3]
    largest = [max(kind.items(), key=lambda item: item[1]) for kind in drops.values() if kind]
    if largest:
        worst.append("largest drops of AP: " + ", ".join(f"{name} {drop:.3f}" for name, drop in largest))
    small = [f"{loss.group.name} {loss.found}" for loss in losses if loss.group.name not in p_values]
    if small:
        worst.append(f"too few objects to be judged: {', '.join(small)}")
    return worst


def _guard_suspect(
    losses: Sequence[_Loss], p_values: Mapping[str, float], drops: Mapping[str, Mapping[str, float]]
) -> str:
    if min(p_values.values(), default=1.0) > _BY_CHANCE:
        return _drop_suspect(drops)
    # A group is suspect if it has far more of the losses than of the objects; an even loss points nowhere.
    classes = [loss for loss in losses if loss.group.kind == "class"]  # every object is in exactly one
    found, lost = sum(loss.found for loss in classes), sum(loss.lost for loss in classes)
    worst = max(losses, key=lambda loss: loss.lost / lost - loss.found / found)
    if worst.lost / lost - worst.found / found < 0.5:
        return ""
    return f"{_WHERE[worst.group.kind]} of {worst.group.name}"


def _drop_suspect(drops: Mapping[str, Mapping[str, float]]) -> str:
    # Objects that are still found, but later or in worse boxes: the group whose AP falls most.
    ranked = [(drop, f"{_WHERE[kind]} of {name}") for kind, group in drops.items() for name, drop in group.items()]
    drop, where = max(ranked, default=(0.0, ""))
    return where if drop > 0 else ""


def _summary(title: str, figures: ApFigures) -> str:
    parts = {"AP50": figures.ap50, "AP75": figures.ap75}
    parts |= {"small": figures.ap_small, "medium": figures.ap_medium, "large": figures.ap_large}
    return f"{title} {figures.ap:.3f} ({', '.join(f'{name} {value:.3f}' for name, value in parts.items())})"


def _all_figures(figures: ApFigures) -> dict[str, float]:
    named = {name: getattr(figures, name) for name in FIGURES}
    by_category = {f"category {category}": value for category, value in figures.by_category.items()}
    return {**named, **by_category}


def _difference(ours: float, theirs: float) -> float:
    if math.isnan(ours) and math.isnan(theirs):
        return math.nan
    return _WHOLE_SCALE if math.isnan(ours) or math.isnan(theirs) else abs(ours - theirs)
