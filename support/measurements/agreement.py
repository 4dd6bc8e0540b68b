"""Measurements on two passes over the same images: scores, batches and repeats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from support.agreement import Matches, overlapping
from support.clauses import Precision
from support.detections import Detections
from support.errors import NoReferenceError
from support.rungs import Differences
from support.spec import Accuracy, Rungs, Throughput
from support.verdict import Measurement

__all__ = ["batch_invariance", "early_agreement", "score_agreement", "timed_outputs"]

Key = TypeVar("Key", bound=np.integer)

#: What one detection can add to a mean shift, in image pixels: another box of the same object says nothing of anchors.
_LARGEST_SHIFT = 4.0
#: Sides of the smallest boxes of each group, in image pixels: an octave each, as the feature levels of the network.
_OCTAVES = (0, 32, 64, 128, 256)


def score_agreement(
    matches: Matches, accuracy: Accuracy, expected: int, *, overflow: Callable[[int], str] | None = None
) -> Measurement:
    """
    Measure how well the scores of the candidate agree with those of the reference.

    AP depends on the order of the scores only; this depends on their values. A mean over everything hides what is wrong
    with few images or one class, so these are counted one by one: see `support.spec.Accuracy` for when they differ.

    Parameters
    ----------
    matches : Matches
        Reference and candidate.
    accuracy : support.spec.Accuracy
        Score floor, the change of score that makes a pair an outlier, and when an image or a class differs.
    expected : int
        Images of the whole set.
    overflow : callable, optional
        Names what half precision cannot hold on an image, by its id, or nothing. Asked only if the clause is red, about
        the image with the largest change of score; what it names is the first suspect, since a runtime that saturates
        hides an overflow behind finite numbers.

    Returns
    -------
    measurement : Measurement
        `unmatched` is the part of all detections above the floor that have no partner; `score_p99` the 99th percentile
        of the change of score; `slope_error` the distance from 1 of the slope of candidate over reference scores,
        through the origin; `outliers` the part of the pairs that change by more than `score_tolerance`. Without
        a single pair these four are 1. `different_images` and `different_classes` are counted; `box_shift` is the
        largest mean shift of an edge over the boxes of a similar size, which no single box shows.

    Raises
    ------
    NoReferenceError
        If the reference has no detection above the floor.
    """
    if not (matches.reference.scores >= accuracy.score_floor).any():
        raise NoReferenceError(
            "the reference has no detection above the score floor",
            required=f"detections of at least {accuracy.score_floor}",
            remedy="check the reference's checkpoint, or compare more images",
        )
    changes, pairs = np.abs(matches.score_changes), len(matches.reference_rows)
    slope, apart = _slope(matches), _apart(matches, accuracy)
    shift, shifted = _box_shift(matches, accuracy.guard_minimum_objects)
    return Measurement(
        {
            "unmatched": matches.unmatched / (pairs + matches.unmatched) if pairs else 1.0,
            "score_p99": float(np.quantile(changes, 0.99)) if pairs else 1.0,
            "slope_error": abs(slope - 1) if pairs else 1.0,
            "outliers": float(np.mean(changes > accuracy.score_tolerance)) if pairs else 1.0,
            "different_images": float(len(apart.images)),
            "different_classes": float(len(apart.classes)),
            "box_shift": shift,
        },
        len(matches.reference.images),
        expected,
        findings=(
            *apart.findings,
            *_findings(matches),
            *([f"mean shift of an edge of {shifted}: {shift:.3f} px"] if shifted else []),
            f"score of the candidate = {slope:.5f} x that of the reference in {pairs} pairs",
        ),
        suspect=_first_suspect(
            matches, accuracy, overflow, apart, shifted if 10 * shift > accuracy.box_tolerance else ""
        ),
    )


def early_agreement(
    matches: Matches, accuracy: Accuracy, rules: Rungs, expected: int, *, overflow: Callable[[int], str] | None = None
) -> Measurement:
    """
    Measure on the images of an early rung how far the candidate is from the reference.

    Parameters
    ----------
    matches : Matches
        Reference and candidate, on these images.
    accuracy : support.spec.Accuracy
        Score floor, and the change of score that makes a pair differ.
    rules : support.spec.Rungs
        What makes an image ruined.
    expected : int
        Images of the whole set.
    overflow : callable, optional
        As for `score_agreement`.

    Returns
    -------
    measurement : Measurement
        `different` is the part of all detections above the floor that have no partner or change their score by more
        than `score_tolerance`; `ruined_images` counts the images on which most detections do.
    """
    differences = Differences.of(matches, accuracy.score_tolerance)
    ruined = differences.ruined(rules)
    findings = [f"images {', '.join(map(str, ruined[:5]))} agree in less than half"] if len(ruined) else []
    return Measurement(
        differences.values(rules),
        len(differences.images),
        expected,
        findings=(*findings, *_findings(matches)),
        suspect=_first_suspect(matches, accuracy, overflow, _apart(matches, accuracy), ""),
    )


def batch_invariance(matches: Matches, slot_error: float, expected: int, *, precision: Precision) -> Measurement:
    """
    Measure whether an image gives the same detections at another batch size and in another slot.

    Parameters
    ----------
    matches : Matches
        A pass at the batch size all others are compared with, and a pass at another one.
    slot_error : float
        Largest difference of a logit between the slots of one batch filled with the same image.
    expected : int
        Images of the whole set.
    precision : {"full", "mixed"}
        What the candidate computes in. In full precision the worst detection counts. In mixed precision another batch
        size may round another way, and a detection that rounding moves across a threshold says nothing, so the 99th
        percentile counts.

    Raises
    ------
    NoReferenceError
        If neither pass has a detection to compare.
    """
    _require_something(matches)
    return Measurement(
        _worst(matches, slot_error) if precision == "full" else _typical(matches, slot_error),
        len(matches.reference.images),
        expected,
        findings=_findings(matches),
        variant=precision,
    )


def _worst(matches: Matches, slot_error: float) -> dict[str, float]:
    return {
        "unmatched": float(matches.unmatched),
        "score_change": float(np.abs(matches.score_changes).max(initial=0.0)),
        "box_change": float(matches.box_changes.max(initial=0.0)),
        "slot_error": slot_error,
    }


def _typical(matches: Matches, slot_error: float) -> dict[str, float]:
    pairs = len(matches.reference_rows)
    return {
        "mixed_unmatched": matches.unmatched / (pairs + matches.unmatched),
        # Without a pair there is no change to see, and everything is unmatched.
        "mixed_score_p99": float(np.quantile(np.abs(matches.score_changes), 0.99)) if pairs else 0.0,
        "mixed_box_p99": float(np.quantile(matches.box_changes, 0.99)) if pairs else 0.0,
        "mixed_slot_error": slot_error,
    }


def timed_outputs(matches: Matches, rules: Throughput, *, precision: Precision, expected: int) -> Measurement:
    """
    Count the images on which the timed pass and an independent pass differ.

    In full precision one detection that differs makes an image differ. In mixed precision rounding decides near-ties,
    and another box of the same object may win, so an image differs only if a large part of its detections does.

    Parameters
    ----------
    matches : Matches
        An independent pass as the reference, the timed pass as the candidate.
    rules : support.spec.Throughput
        Changes of score, and of a box edge in image pixels, that two passes over the same input may show, and the part
        of an image's detections that may show larger ones in mixed precision.
    precision : {"full", "mixed"}
        What the candidate computes in.
    expected : int
        Images that must be compared.

    Raises
    ------
    NoReferenceError
        If neither pass has a detection to compare.
    """
    _require_something(matches)
    mixed = precision == "mixed"
    score_tolerance = rules.mixed_repeat_score_tolerance if mixed else rules.repeat_score_tolerance
    box_tolerance = rules.mixed_repeat_box_tolerance if mixed else rules.repeat_box_tolerance
    differs = _differing(matches, score_tolerance, box_tolerance)
    images, counts = _different(_images_of, matches, differs, rules.mixed_repeat_share if mixed else 0.0)
    findings = tuple(
        f"image {image}: {count} detections differ" for image, count in zip(images[:5], counts[:5], strict=True)
    )
    return Measurement(
        {"mixed_different_images" if mixed else "different_images": float(len(images))},
        len(matches.reference.images),
        expected,
        findings=findings,
        variant=precision,
    )


def _differing(matches: Matches, score_tolerance: float, box_tolerance: float) -> NDArray[np.bool_]:
    return (np.abs(matches.score_changes) > score_tolerance) | (matches.box_changes > box_tolerance)


def _images_of(part: Detections) -> NDArray[np.int64]:
    return part.image_ids


def _classes_of(part: Detections) -> NDArray[np.int64]:
    return part.category_ids.astype(np.int64)


def _different(
    key: Callable[[Detections], NDArray[np.int64]],
    matches: Matches,
    differs: NDArray[np.bool_],
    share: float,
    minimum: int = 1,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Groups (images or classes) of whose detections more than this share differ or have no partner, those with most
    # of them first, and how many these are.
    unmatched = np.concatenate([key(matches.reference)[matches.lost], key(matches.candidate)[matches.surplus]])
    paired = key(matches.candidate)[matches.candidate_rows]
    groups, counts = _worst_first(np.concatenate([unmatched, paired[differs]]))
    known, numbers = np.unique(np.concatenate([unmatched, paired]), return_counts=True)
    totals = numbers[np.searchsorted(known, groups)]
    different = (counts > share * totals) & (totals >= minimum)
    return groups[different], counts[different]


@dataclass(frozen=True)
class _Apart:
    """
    Images and classes that differ as a whole, those with most different detections first.

    `in_images` and `in_classes` are the parts of all different detections that lie in them.
    """

    images: NDArray[np.int64]
    classes: NDArray[np.int64]
    in_images: float
    in_classes: float
    findings: tuple[str, ...]


def _apart(matches: Matches, accuracy: Accuracy) -> _Apart:
    differs = _differing(matches, accuracy.score_tolerance, accuracy.box_tolerance)
    rules = accuracy.different_share, accuracy.different_minimum
    images, in_images = _different(_images_of, matches, differs, *rules)
    classes, in_classes = _different(_classes_of, matches, differs, *rules)
    total = max(1, matches.unmatched + int(differs.sum()))
    findings = [
        f"{len(groups)} {kind} differ in most of their detections: {', '.join(map(str, groups[:5]))}"
        for kind, groups in (("images", images), ("categories", classes))
        if len(groups)
    ]
    return _Apart(images, classes, in_images.sum() / total, in_classes.sum() / total, tuple(findings))


def _box_shift(matches: Matches, minimum: int) -> tuple[float, str]:
    # Largest mean shift of one of the four edges, over boxes of a size, and which size that is.
    before = matches.reference.boxes[matches.reference_rows].astype(np.float64)
    shifts = matches.candidate.boxes[matches.candidate_rows] - before
    shifts = np.clip(shifts, -_LARGEST_SHIFT, _LARGEST_SHIFT)
    octaves = np.searchsorted(_OCTAVES, np.sqrt(np.prod(before[:, 2:] - before[:, :2], axis=1)), "right")
    worst, name = 0.0, ""
    for place, smallest in enumerate(_OCTAVES, start=1):
        group = shifts[octaves == place]
        if len(group) >= minimum and (shift := float(np.abs(group.mean(axis=0)).max())) > worst:
            worst, name = shift, f"boxes with sides from {smallest} px" + _up_to(place)
    return worst, name


def _up_to(place: int) -> str:
    return f" to {_OCTAVES[place]} px" if place < len(_OCTAVES) else ""


def _require_something(matches: Matches) -> None:
    if not len(matches.reference_rows) and not matches.unmatched:
        raise NoReferenceError(
            f"neither pass has a detection to compare on any of {len(matches.reference.images)} images",
            required="at least one detection above the score floor",
            remedy="check the model's class heads, or compare more images",
        )


def _slope(matches: Matches) -> float:
    reference, candidate = matches.reference_scores, matches.candidate_scores
    return float(reference @ candidate / (reference @ reference)) if len(reference) else 0.0


def _unmatched_images(matches: Matches) -> NDArray[np.int64]:
    return np.concatenate([matches.reference.image_ids[matches.lost], matches.candidate.image_ids[matches.surplus]])


def _worst_first(ids: NDArray[Key]) -> tuple[NDArray[Key], NDArray[np.int64]]:
    unique, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return unique[order], counts[order]


def _findings(matches: Matches) -> tuple[str, ...]:
    findings = []
    if matches.unmatched:
        images, counts = _worst_first(_unmatched_images(matches))
        findings.append(
            f"{len(matches.lost)} detections lost and {len(matches.surplus)} new on {len(images)} images; "
            f"most on image {images[0]}: {counts[0]}"
        )
    if len(matches.reference_rows):
        score, box = np.argmax(np.abs(matches.score_changes)), np.argmax(matches.box_changes)
        before, after = matches.reference_scores[score], matches.candidate_scores[score]
        findings.append(f"largest change of score: {before:.4f} -> {after:.4f}, {_where(matches, score)}")
        findings.append(f"largest change of a box: {matches.box_changes[box]:.3f} px, {_where(matches, box)}")
    return tuple(findings)


def _where(matches: Matches, pair: np.intp) -> str:
    return f"image {matches.image_ids[pair]}, category {matches.candidate.category_ids[matches.candidate_rows[pair]]}"


def _first_suspect(
    matches: Matches, accuracy: Accuracy, overflow: Callable[[int], str] | None, apart: _Apart, shifted: str
) -> str | Callable[[], str]:
    suspect = _suspect(matches, accuracy, apart) or (f"anchors, or the feature level, of {shifted}" if shifted else "")
    if overflow is None or not len(matches.reference_rows):
        return suspect
    worst = int(matches.image_ids[np.argmax(np.abs(matches.score_changes))])
    return lambda: overflow(worst) or suspect


def _suspect(matches: Matches, accuracy: Accuracy, apart: _Apart) -> str:
    pairs = len(matches.reference_rows)
    if 100 * len(matches.lost) <= pairs and len(matches.surplus) > 10 * (len(matches.lost) + 1):
        return "suppression of overlapping boxes: almost all that has no partner is new"
    if not pairs or matches.unmatched > pairs:
        return _unmatched_suspect(matches, accuracy)
    twice = 1 / (1 + np.exp(-matches.reference_scores))
    if np.median(np.abs(matches.candidate_scores - twice)) <= accuracy.score_tolerance:
        return "sigmoid applied twice"
    category, share = _most_lost_category(matches)
    paired = np.mean(matches.reference.category_ids[matches.reference_rows] == category)
    # A few lost detections are of some category by chance.
    if share - paired > 0.5 and category in apart.classes:
        return f"the class channel of category {category}"
    few = _few_suspect(matches, apart)
    if not few and len(matches.lost) > 10 * (len(matches.surplus) + 1):
        return "candidates that were cut off: almost all that has no partner is lost"
    return few


def _few_suspect(matches: Matches, apart: _Apart) -> str:
    # A few images or classes that have most of what differs are where to look.
    images = len(matches.reference.images)
    if len(apart.images) <= images // 10 and apart.in_images > 0.5:
        return f"batch, slot or input of single images: {', '.join(map(str, apart.images[:5]))}"
    classes = len(np.unique(matches.reference.category_ids[matches.reference_rows]))
    if len(apart.classes) <= classes // 2 and apart.in_classes > 0.5:
        return f"class channels of categories {', '.join(map(str, apart.classes[:5]))}"
    return ""


def _most_lost_category(matches: Matches) -> tuple[int, float]:
    # The category with most of the lost detections, and its part of them.
    categories, counts = _worst_first(matches.reference.category_ids[matches.lost])
    return (int(categories[0]), float(counts[0] / counts.sum())) if len(counts) else (0, 0.0)


def _unmatched_suspect(matches: Matches, accuracy: Accuracy) -> str:
    # If the boxes find partners as soon as classes do not matter, the boxes are right.
    one_class = [
        dataclasses.replace(part, category_ids=np.ones_like(part.category_ids))
        for part in (matches.reference, matches.candidate)
    ]
    partners = len(overlapping(one_class[0], one_class[1], accuracy.match_iou)[0])
    if 2 * partners > len(matches.reference.scores):
        return "class ids: most boxes have a partner in another class"
    return "boxes, or images paired with other ids: most detections have no partner"
