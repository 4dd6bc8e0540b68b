"""Faults of scoring and of timing."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

import support.results
import support.run
import support.speed
from support.dataset import GroundTruth
from support.detections import Decoder, Detections
from support.faults.bench import BATCH, Bench, replaced
from support.faults.fault import Registry
from support.faults.kept_heads import Outputs
from support.run import Run
from support.spec import Throughput
from support.timing import PassTiming, ThroughputEstimate

__all__ = ["REGISTRY", "TIMING", "at_published_pace"]

REGISTRY = Registry("scoring")
TIMING = Registry("timing")
LOAD = "another load on the host, driver or power mode"


def _scored(bench: Bench, stack: ExitStack, change: Any) -> Run:
    def faulty(truth: GroundTruth, detections: Detections, scorer: str) -> Any:
        return original(*(change(truth, detections) if scorer == "hotcoco" else (truth, detections)), scorer)

    original = replaced(stack, support.results, "score", faulty)
    return bench.replayed(stack)


@REGISTRY.add("scorer_agreement", "the scorer")
def crowds_scored_as_objects(bench: Bench, stack: ExitStack) -> Run:
    """The fast scorer takes crowd regions for objects."""

    def change(truth: GroundTruth, detections: Detections) -> Any:
        rows = [{**row, "iscrowd": 0} for row in truth.coco["annotations"]]
        return replace(truth, coco={**truth.coco, "annotations": rows}), detections

    return _scored(bench, stack, change)


@REGISTRY.add("scorer_agreement", "the scorer")
def ties_in_another_order(bench: Bench, stack: ExitStack) -> Run:
    """The fast scorer sees scores rounded to two decimals."""

    def change(truth: GroundTruth, detections: Detections) -> Any:
        return truth, replace(detections, scores=np.maximum(np.round(detections.scores, 2), np.float32(0.001)))

    return _scored(bench, stack, change)


@REGISTRY.add("suspicious_gain", "the evaluation", batch=BATCH)
def truth_leaks_in(bench: Bench, stack: ExitStack) -> Run:
    """Detections near an object take its box."""
    bench.build_clean()
    boxes: dict[tuple[int, int], list[Any]] = {}
    for row in bench.start().dataset.truth.coco["annotations"]:
        x, y, width, height = row["bbox"]
        boxes.setdefault((row["image_id"], row["category_id"]), []).append((x, y, x + width, y + height))

    class Faulty(Decoder):
        def decode(self, *arguments: Any) -> Detections:
            found = super().decode(*arguments)
            keys = zip(found.image_ids.tolist(), found.category_ids.tolist(), strict=True)
            moved = [_nearest(box, boxes.get(key, [])) for box, key in zip(found.boxes, keys, strict=True)]
            return replace(found, boxes=np.array(moved, np.float32).reshape(-1, 4))

    replaced(stack, support.run, "Decoder", Faulty)
    return bench.replayed(stack)


def _nearest(box: Any, objects: list[Any]) -> Any:
    distances = [float(np.abs(box - np.array(other)).max()) for other in objects]
    return objects[int(np.argmin(distances))] if distances and min(distances) < 8 else box


# --- timing, on a GPU that replays at the published pace


def at_published_pace(bench: Bench, stack: ExitStack, factor: float = 1.0, *, wall: bool = False) -> Run:
    """
    Begin a run on a T4 that replays kept heads; a call takes `factor` times the published time.

    A replay itself takes hardly any time, so its wall time is not told, unless `wall` says so.
    """
    if not wall:
        _timing(stack, lambda timing: replace(timing, pass_seconds=None))
    published = bench.world.spec.baselines["t4-ort"].images_per_second[BATCH]

    def pace(call: int) -> float:
        return factor * BATCH / published * (1 + 0.003 * math.sin(call * 12.9898))

    return bench.replayed(stack, pace=pace, chip="T4")


def _timing(stack: ExitStack, change: Callable[[PassTiming], PassTiming]) -> None:
    def faulty(feed: Any, backends: Any, decoder: Any, model: Any, plan: Any, progress: Any) -> Any:
        measured = original(feed, backends, decoder, model, plan, progress)
        return replace(measured, timing=change(measured.timing))

    original = replaced(stack, support.run, "run_on_devices", faulty)


def _samples(bench: Bench, stack: ExitStack, change: Callable[[PassTiming], PassTiming]) -> Run:
    _timing(stack, change)
    return at_published_pace(bench, stack)


@TIMING.add("throughput_same_chip", LOAD, batch=BATCH)
def device_at_nine_tenths(bench: Bench, stack: ExitStack) -> Run:
    """The device runs at nine tenths of its speed, as at a lower clock."""
    return at_published_pace(bench, stack, 1 / 0.9)


@TIMING.add("throughput_same_chip", "the clocks contradict each other", batch=BATCH, reason="implausible")
def milliseconds_taken_for_seconds(bench: Bench, stack: ExitStack) -> Run:
    """Samples in milliseconds are read as seconds."""
    return at_published_pace(bench, stack, 1000, wall=True)


@TIMING.add("throughput_same_chip", "does not follow from the samples", batch=BATCH, reason="implausible")
def batch_not_multiplied(bench: Bench, stack: ExitStack) -> Run:
    """A call counts as one image whatever its batch size."""
    return _figures(bench, stack, 1 / BATCH)


@TIMING.add("throughput_same_chip", "does not follow from the samples", batch=BATCH, reason="implausible")
def batch_multiplied_twice(bench: Bench, stack: ExitStack) -> Run:
    """The batch size is counted twice."""
    return _figures(bench, stack, BATCH)


def _figures(bench: Bench, stack: ExitStack, factor: float) -> Run:
    def faulty(timing: PassTiming, rules: Throughput) -> ThroughputEstimate:
        found = original(timing, rules)
        names = ("images_per_second", "lower", "upper", "judged_lower", "judged_upper")
        figures: dict[str, Any] = {name: factor * getattr(found, name) for name in names}
        return replace(found, **figures)

    original: Callable[[PassTiming, Throughput], ThroughputEstimate]
    original = replaced(stack, support.speed, "estimate", faulty)
    return at_published_pace(bench, stack)


@TIMING.add("throughput_fresh_inputs", "the last outputs again", batch=BATCH)
def outputs_kept_for_an_input(bench: Bench, stack: ExitStack) -> Run:
    """The runtime gives the outputs of the call before again, at once, if the input is the same."""
    before: list[tuple[int, ...]] = [()]

    def alter(outputs: Outputs, keys: tuple[int, ...], _: int) -> Outputs:
        before.append(keys)
        return outputs

    def pace(call: int) -> float:
        return 0.1 * (1 + 0.003 * math.sin(call)) / (50 if before[-1] == before[-2] else 1)

    return bench.replayed(stack, alter, pace, chip="T4")


@TIMING.add("throughput_same_chip", "timed calls", batch=BATCH, reason="no-timing")
def samples_lost(bench: Bench, stack: ExitStack) -> Run:
    """All samples but one were lost."""
    return _samples(bench, stack, lambda timing: replace(timing, calls=timing.calls[:1]))


@TIMING.add("throughput_same_chip", "required: a positive, finite duration", batch=BATCH, reason="no-timing")
def clock_stands_still(bench: Bench, stack: ExitStack) -> Run:
    """One sample took no time."""

    def change(timing: PassTiming) -> PassTiming:
        return replace(timing, calls=(replace(timing.calls[0], seconds=0.0), *timing.calls[1:]))

    return _samples(bench, stack, change)
