"""Faults of decoding: from heads to boxes, and from channels to categories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

import support.backends.torch_eager
import support.detections
import support.run
from support.anchors import level_sizes
from support.detections import Decoder, Detections
from support.faults.bench import BATCH, Bench, replaced
from support.faults.fault import Registry
from support.faults.kept_heads import ReplayBackend
from support.feed import Feed
from support.heads import Heads
from support.run import Run
from support.spec import Model

__all__ = ["REGISTRY"]

REGISTRY = Registry("decode")
UNPAIRED = "boxes, or images paired with other ids"
STAGES = "compare the stages: the first that loses AP"
ANOTHER = "another checkpoint, or another evaluation set"


def _decoded(bench: Bench, stack: ExitStack, change: Callable[[Detections], Detections]) -> Run:
    """Change what the candidate's heads are decoded to."""

    class Faulty(Decoder):
        def decode(self, *arguments: Any) -> Detections:
            return change(super().decode(*arguments))

    bench.build_clean()
    replaced(stack, support.run, "Decoder", Faulty)
    return bench.replayed(stack)


def _with_model(bench: Bench, stack: ExitStack, **changes: Any) -> Run:
    """Decode the candidate by another model table."""
    bench.build_clean()
    _replace_model(stack, **changes)
    return bench.replayed(stack)


def _replace_model(stack: ExitStack, **changes: Any) -> None:
    class Faulty(Decoder):
        def __init__(self, model: Model) -> None:
            super().__init__(model.model_copy(update=changes))

    replaced(stack, support.run, "Decoder", Faulty)


@REGISTRY.add("score_agreement", UNPAIRED, batch=BATCH)
def boxes_as_width_and_height(bench: Bench, stack: ExitStack) -> Run:
    """Boxes are (x, y, width, height) where corners are wanted."""

    def change(found: Detections) -> Detections:
        x0, y0, x1, y1 = found.boxes.T
        boxes = np.stack([x0, y0, np.maximum(x1 - x0, x0), np.maximum(y1 - y0, y0)], axis=1)
        return replace(found, boxes=boxes)

    return _decoded(bench, stack, change)


@REGISTRY.add("score_agreement", UNPAIRED, batch=BATCH)
def scale_inverted(bench: Bench, stack: ExitStack) -> Run:
    """Boxes are divided by the scale of their image instead of multiplied."""

    class Faulty(Decoder):
        def decode(self, heads: Heads, image_ids: Any, scales: Any, sizes: Any) -> Detections:
            found = super().decode(heads, image_ids, scales, sizes)
            by_image = dict(zip(image_ids.tolist(), scales.tolist(), strict=True))
            squares = np.array([by_image[key] ** 2 for key in found.image_ids.tolist()], np.float32)
            return replace(found, boxes=found.boxes / squares[:, None])

    bench.build_clean()
    replaced(stack, support.run, "Decoder", Faulty)
    return bench.replayed(stack)


@REGISTRY.add("class_size_guard", "the geometry of portrait images", batch=BATCH)
def portraits_scaled_by_width(bench: Bench, stack: ExitStack) -> Run:
    """Portrait images are scaled back by their short side."""
    clean = Feed.scales.func  # type: ignore[attr-defined]

    def faulty(feed: Feed) -> Any:
        scales, (width, height) = clean(feed), feed.sizes.T
        return np.where(height > width, scales * width / height, scales)

    bench.build_clean()
    replaced(stack, Feed, "scales", property(faulty))
    return bench.replayed(stack)


@REGISTRY.add("score_agreement", "anchors, or the feature level, of boxes with sides from", batch=BATCH)
def anchors_of_one_size_off_by_a_pixel(bench: Bench, stack: ExitStack) -> Run:
    """The anchors of the second finest level lie a pixel too far right."""
    bench.build_clean()
    _shift_anchors(stack)
    return bench.replayed(stack)


def _shift_anchors(stack: ExitStack) -> None:
    def faulty(model: Model) -> Any:
        boxes = original(model)
        finest, next_finest = (model.anchors_per_cell * cells**2 for cells in level_sizes(model)[:2])
        boxes[finest : finest + next_finest, [1, 3]] += 1
        return boxes

    original = replaced(stack, support.detections, "anchor_boxes", faulty)


def _on_a_grid(found: Detections) -> Detections:
    return replace(found, boxes=(np.round(found.boxes / 8) * 8).astype(np.float32))


@REGISTRY.add("accuracy_measured_drop", STAGES, batch=BATCH)
def boxes_on_a_grid(bench: Bench, stack: ExitStack) -> Run:
    """Boxes are rounded to multiples of eight pixels."""
    return _decoded(bench, stack, _on_a_grid)


@REGISTRY.add("stage_ap", "stage simplified onnx -> candidate")
def lost_at_the_last_stage(bench: Bench, stack: ExitStack) -> Run:
    """What is deployed reaches less AP than the graph it was made from."""
    bench.build_ladder()
    return _decoded(bench, stack, _on_a_grid)


@REGISTRY.add("score_agreement", "suppression of overlapping boxes", batch=BATCH)
def duplicates_kept(bench: Bench, stack: ExitStack) -> Run:
    """Suppression lets boxes through that overlap by up to six tenths."""
    return _with_model(bench, stack, iou_threshold=0.6)


@REGISTRY.add("accuracy_guide_floor", STAGES, batch=BATCH)
def too_few_candidates(bench: Bench, stack: ExitStack) -> Run:
    """Only the best 10 logits become candidates."""
    return _with_model(bench, stack, max_points=10)


@REGISTRY.add("score_agreement", "class ids", batch=BATCH, step="category mapping")
def classes_counted_from_zero(bench: Bench, stack: ExitStack) -> Run:
    """Every category is the one before its own."""
    ids = bench.start().dataset.truth.category_ids
    return _renumbered(bench, stack, dict(zip(ids, (ids[-1], *ids), strict=False)))


@REGISTRY.add("score_agreement", "class ids", batch=BATCH, step="category mapping")
def categories_made_contiguous(bench: Bench, stack: ExitStack) -> Run:
    """Categories are numbered without the gaps that COCO has."""
    ids = bench.start().dataset.truth.category_ids
    return _renumbered(bench, stack, {category: place for place, category in enumerate(ids, start=1)})


def _renumbered(bench: Bench, stack: ExitStack, numbers: Mapping[int, int]) -> Run:
    def change(found: Detections) -> Detections:
        ids = [numbers.get(category, category) for category in found.category_ids.tolist()]
        return replace(found, category_ids=np.array(ids, np.int32))

    return _decoded(bench, stack, change)


# --- faults of the suite itself, which reference and candidate share


def _everywhere(bench: Bench, stack: ExitStack) -> Run:
    """Measure the reference again, with whatever is wrong now, from kept heads."""
    kept = bench.kept

    def replayed(network: Any, model: Model, batch: int) -> ReplayBackend:
        return ReplayBackend(kept, batch)

    replaced(stack, support.backends.torch_eager, "TorchBackend", replayed)
    return bench.start(artifacts=bench.new_folder("store"))


@REGISTRY.add("reference_ap", ANOTHER)
def anchors_off_by_a_pixel_everywhere(bench: Bench, stack: ExitStack) -> Run:
    """The anchors of one level lie a pixel too far right for reference and candidate alike."""
    bench.build_clean()
    _shift_anchors(stack)
    return _everywhere(bench, stack)


@REGISTRY.add("reference_ap", ANOTHER)
def duplicates_kept_everywhere(bench: Bench, stack: ExitStack) -> Run:
    """Reference and candidate keep boxes that overlap by up to six tenths."""
    bench.build_clean()
    _replace_model(stack, iou_threshold=0.6)
    return _everywhere(bench, stack)
