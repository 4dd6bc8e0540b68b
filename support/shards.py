"""One pass shared among several devices."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from support.detections import Decoder, Detections
from support.engine import Pass, Plan, joined_heads, run_pass
from support.progress import Advance, Progress
from support.spec import Model

if TYPE_CHECKING:
    from support.backends.base import Backend
    from support.feed import Feed

__all__ = ["run_on_devices"]

#: Seconds between two looks at the devices.
LOOK_EVERY = 0.2


def run_on_devices(
    feed: Feed, backends: Sequence[Backend], decoder: Decoder, model: Model, plan: Plan, progress: Progress
) -> Pass:
    """
    Run every image of a plan once, shared among devices on which the same model is open.

    Each device takes one run of consecutive whole batches, so that only the last has a padded tail and every batch is
    filled as one device alone would fill it: the detections are those of one device. Samples of devices that worked
    side by side are no measure of one device's throughput.

    Raises
    ------
    SuiteError
        The first failure of a device; the others stop after their current call.
    """
    shards = _shards(plan, len(backends), backends[0].batch)
    if len(shards) == 1:
        return run_pass(feed, backends[0], decoder, model, plan, progress)
    joint = _Joint(len(shards))
    with ThreadPoolExecutor(len(shards)) as pool, progress.step(plan.title) as advance:
        running = [
            pool.submit(run_pass, feed, backend, decoder, model, shard, joint.part(place))
            for place, (backend, shard) in enumerate(zip(backends, shards, strict=False))
        ]
        with joint.stopped_on_error():
            while wait(running, LOOK_EVERY, FIRST_EXCEPTION).not_done:
                advance(joint.done, len(plan.order))
                _raise_first(running)
            return _joined_passes([future.result() for future in running])


def _shards(plan: Plan, devices: int, batch: int) -> list[Plan]:
    calls = -(-len(plan.order) // batch)
    per_device = -(-calls // devices) * batch
    starts = range(0, len(plan.order), max(per_device, 1))
    return [
        replace(plan, order=plan.order[start : start + per_device], golden=max(0, plan.golden - start))
        for start in starts
    ] or [plan]


def _raise_first(running: Sequence[Future[Pass]]) -> None:
    for future in running:
        if future.done():
            future.result()


def _joined_passes(parts: Sequence[Pass]) -> Pass:
    timings = [part.timing for part in parts]
    timing = replace(
        timings[0],
        calls=tuple(call for each in timings for call in each.calls),
        warm_up=tuple(seconds for each in timings for seconds in each.warm_up),
        pass_seconds=None,
    )
    return Pass(
        Detections.concatenate([part.detections for part in parts]),
        timing,
        joined_heads([part.golden for part in parts if part.golden.classes]),
        sum(part.padded_scored for part in parts),
    )


class _StoppedError(Exception):
    """Ends a device's part of a pass after another part failed; nobody sees it."""


class _Joint:
    """Progress of parts that run side by side: each only counts, and ends at its next step when one has failed."""

    def __init__(self, parts: int) -> None:
        self._counts, self._stop = [0] * parts, threading.Event()

    @property
    def done(self) -> int:
        return sum(self._counts)

    def part(self, place: int) -> Progress:
        return _Part(self._counts, place, self._stop)

    @contextmanager
    def stopped_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._stop.set()
            raise


class _Part:
    def __init__(self, counts: list[int], place: int, stop: threading.Event) -> None:
        self._counts, self._place, self._stop = counts, place, stop

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        yield self._advance

    def _advance(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        self._counts[self._place] = done
