"""Faults of batching: which images, in which slots, under which ids."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import support.run
from support.engine import Pass
from support.faults.bench import BATCH, Bench, replaced
from support.faults.fault import Registry
from support.faults.kept_heads import Outputs, checksum
from support.run import Run

__all__ = ["REGISTRY"]

REGISTRY = Registry("batching")
ACCOUNT = "tail batch, image order or stale results"
BATCHING = "batch handling of the runtime or the graph"


def _rows(order: list[int], outputs: Outputs) -> Outputs:
    return {name: value[order] for name, value in outputs.items()}


def _planned(bench: Bench, stack: ExitStack, change: Callable[[Any, Callable[[Any], Pass]], Pass]) -> Run:
    """Change the plan of the candidate's pass, or what comes of it."""

    def faulty(feed: Any, backends: Any, decoder: Any, model: Any, plan: Any, progress: Any) -> Pass:
        return change(plan, lambda planned: original(feed, backends, decoder, model, planned, progress))

    original = replaced(stack, support.run, "run_on_devices", faulty)
    return bench.replayed(stack)


@REGISTRY.add("coverage", ACCOUNT, batch=BATCH)
def tail_dropped(bench: Bench, stack: ExitStack) -> Run:
    """The images that do not fill a batch are left out."""
    return _planned(
        bench, stack, lambda plan, run: run(replace(plan, order=plan.order[: len(plan.order) // BATCH * BATCH]))
    )


@REGISTRY.add("coverage", ACCOUNT, batch=BATCH)
def padding_scored(bench: Bench, stack: ExitStack) -> Run:
    """The copies that fill up the last batch are scored."""

    def change(plan: Any, run: Callable[[Any], Pass]) -> Pass:
        filling = [plan.order[-1]] * (-len(plan.order) % BATCH)
        measured = run(replace(plan, order=[*plan.order, *filling]))
        return replace(measured, padded_scored=len(filling))

    return _planned(bench, stack, change)


@REGISTRY.add("coverage", ACCOUNT, batch=BATCH)
def image_scored_twice(bench: Bench, stack: ExitStack) -> Run:
    """One image is scored in the place of another."""
    return _planned(bench, stack, lambda plan, run: run(replace(plan, order=[*plan.order[:-1], plan.order[0]])))


@REGISTRY.add("batch_invariance", BATCHING, batch=BATCH)
def first_result_repeated(bench: Bench, stack: ExitStack) -> Run:
    """At one batch size every slot has the result of the first."""

    def alter(outputs: Outputs, keys: tuple[int, ...], _: int) -> Outputs:
        return _rows([0] * len(keys), outputs) if len(keys) == BATCH else outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("batch_invariance", BATCHING, batch=BATCH)
def last_slot_drifts(bench: Bench, stack: ExitStack) -> Run:
    """The last slot of a batch gives logits that are a hundredth too high."""

    def alter(outputs: Outputs, keys: tuple[int, ...], _: int) -> Outputs:
        for name, value in outputs.items():
            if name.startswith("class") and len(keys) == BATCH:
                value[-1] += 0.01
        return outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("score_agreement", "boxes, or images paired with other ids", batch=BATCH)
def images_under_other_ids(bench: Bench, stack: ExitStack) -> Run:
    """Every image of a batch gets the results of its neighbour."""
    return bench.replayed(stack, lambda outputs, keys, _: _rows([*range(1, len(keys)), 0], outputs))


@REGISTRY.add("score_agreement", "batch, slot or input of single images", batch=BATCH)
def last_batch_swapped(bench: Bench, stack: ExitStack) -> Run:
    """The two images of the last batch have each other's results."""
    feed = bench.start().feed
    last = checksum(feed.tensors([len(feed) - 1])[0])

    def alter(outputs: Outputs, keys: tuple[int, ...], _: int) -> Outputs:
        # The tail is filled up with its last image.
        return _rows([1, 0, *range(2, len(keys))], outputs) if keys[1:] == (last,) * (len(keys) - 1) else outputs

    return bench.replayed(stack, alter)
