"""One pass over the data: reading, device and decoding overlap, results stay in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from support.deadline import deadline
from support.detections import Decoder, Detections
from support.errors import NotFiniteError
from support.heads import Heads, pair_heads
from support.progress import Progress
from support.spec import Model
from support.timing import CallSample, PassTiming

if TYPE_CHECKING:
    from support.backends.base import Backend
    from support.feed import Feed

__all__ = ["Pass", "Plan", "joined_heads", "repeated_image", "run_pass"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """
    What one pass does.

    Parameters
    ----------
    order : sequence of int
        Rows of the feed in the order in which they fill the batches.
    warm_up_calls : int
        Calls on the first batch before samples count, at least.
    golden : int
        Number of leading images whose raw heads are kept.
    call_seconds : float
        Time limit of one call.
    title : str
        Shown with the progress.
    chip : str
        What the samples are of.
    steady : callable
        Told the seconds of the calls so far, whether the warm-up may end.
    """

    order: Sequence[int]
    warm_up_calls: int
    golden: int
    call_seconds: float
    title: str
    chip: str
    steady: Callable[[Sequence[float]], bool] = lambda seconds: True


@dataclass(frozen=True)
class Pass:
    """
    The outcome of a pass.

    Attributes
    ----------
    detections : Detections
        Of every image of the plan, in its order.
    timing : PassTiming
        Every sample.
    golden : Heads
        Raw heads of the leading images.
    padded_scored : int
        Filling slots of the last batch that reached the detections: none, unless the engine is broken.
    """

    detections: Detections
    timing: PassTiming
    golden: Heads
    padded_scored: int


def run_pass(feed: Feed, backend: Backend, decoder: Decoder, model: Model, plan: Plan, progress: Progress) -> Pass:
    """
    Run every image of a plan once through an open backend.

    The next batch is read, and the last one fetched and decoded, while the device computes. At most two batches of raw
    heads exist at a time: the one being computed and the one being decoded; the device waits for a slow decoder. The
    last batch is filled up with copies of its last image; they are computed, since the batch size of a compiled model
    is fixed, and thrown away before decoding.

    Raises
    ------
    SuiteTimeoutError
        If one call takes longer than the plan allows.
    ContractViolationError
        If outputs are not the heads the model must have, or are not finite.
    SuiteError
        Whatever else goes wrong first in reading, computing or decoding; the others end with what they are at.
    """
    batches, parts = _batches(plan.order, backend.batch), list[_Part]()
    # One is read into while the device computes from the other.
    places = backend.places()
    failures = _Failures()
    with (
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as decoding,
        progress.step(plan.title) as advance,
        failures.first_raised(),
    ):
        coming = reading.submit(failures.noting(_load), feed, batches[0], places[0])
        _warm_up(backend, coming.result(), plan)
        start = time.perf_counter()
        decoded: Future[_Part] | None = None
        for place, rows in enumerate(batches):
            tensor = coming.result()
            if place + 1 < len(batches):
                coming = reading.submit(failures.noting(_load), feed, batches[place + 1], places[(place + 1) % 2])
            with deadline(plan.call_seconds, f"{plan.title}, call {place + 1} of {len(batches)}"):
                backend.compute(tensor)
            if decoded is not None:
                parts.append(decoded.result())
            work = _Work(feed, decoder, model, backend.batch, rows, golden=plan.golden - place * backend.batch)
            decoded = decoding.submit(failures.noting(work.decoded), backend.fetch())
            advance(min((place + 1) * backend.batch, len(plan.order)), len(plan.order))
        assert decoded is not None, "there is a batch"
        parts.append(decoded.result())
        seconds = time.perf_counter() - start
    return _result(plan, backend, batches, parts, seconds)


def repeated_image(feed: Feed, backend: Backend, model: Model, row: int, *, calls: int) -> Heads:
    """
    Compute a batch in which one image fills every slot, again and again.

    Parameters
    ----------
    feed, backend, model
        As for `run_pass`.
    row : int
        Which image.
    calls : int
        How often; at least twice where the batch has one slot.

    Returns
    -------
    heads : Heads
        Of the first call; of the first two, joined, where the batch has one slot.
    """
    tensor = _load(feed, [row], np.empty(backend.input.shape, np.float32))
    kept = 2 if backend.batch == 1 else 1
    # Copied: outputs last until those of the next call.
    heads = joined_heads([_copied(pair_heads(backend.infer(tensor), model, backend.batch)) for _ in range(kept)])
    for _ in range(calls - kept):
        backend.infer(tensor)
    return heads


class _Part(NamedTuple):
    """What is left of a batch: what was found, and the raw heads of its golden images."""

    detections: Detections
    golden: Heads | None


@dataclass(frozen=True)
class _Work:
    """What a batch needs to be decoded, but for its outputs."""

    feed: Feed
    decoder: Decoder
    model: Model
    batch: int
    rows: Sequence[int]
    golden: int

    def decoded(self, fetched: Callable[[], Mapping[str, NDArray[np.float32]]]) -> _Part:
        heads = pair_heads(fetched(), self.model, self.batch).rows(slice(0, len(self.rows)))
        golden = _copied(heads.rows(slice(0, self.golden))) if self.golden > 0 else None
        return _Part(_decode(self.feed, self.decoder, heads, self.rows), golden)


class _Failures:
    """What went wrong in the threads of a pass, in the order in which it happened."""

    def __init__(self) -> None:
        self._found: list[Exception] = []

    def noting(self, function: Callable[P, T]) -> Callable[P, T]:
        def noted(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                self._found.append(error)
                raise

        return noted

    @contextmanager
    def first_raised(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # What fails later may well be a consequence.
            first = self._found[0] if self._found else error
            if first is error:
                raise
            raise first from error


def _batches(order: Sequence[int], size: int) -> list[Sequence[int]]:
    if not order:
        raise ValueError("a pass over no image measures nothing")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _load(feed: Feed, rows: Sequence[int], buffer: NDArray[np.float32]) -> NDArray[np.float32]:
    feed.tensors(rows, out=buffer[: len(rows)])
    buffer[len(rows) :] = buffer[len(rows) - 1]
    return buffer


def _warm_up(backend: Backend, tensor: NDArray[np.float32], plan: Plan) -> None:
    # A device may have cooled down since it was used for something else.
    before = len(backend.samples)
    while len(backend.samples) - before < plan.warm_up_calls or not plan.steady(backend.samples[before:]):
        with deadline(plan.call_seconds, f"{plan.title}, warm-up"):
            backend.compute(tensor)


def _decode(feed: Feed, decoder: Decoder, heads: Heads, rows: Sequence[int]) -> Detections:
    index = np.asarray(rows)
    try:
        return decoder.decode(heads, feed.image_ids[index], feed.scales[index], feed.sizes[index])
    except NotFiniteError as error:
        row = rows[error.slot]
        raise NotFiniteError(
            f"image {feed.image_ids[row]}: {error.found}", required=error.required, remedy=error.remedy, row=row
        ) from None


def _copied(heads: Heads) -> Heads:
    return Heads(tuple(head.copy() for head in heads.classes), tuple(head.copy() for head in heads.boxes))


def joined_heads(parts: Sequence[Heads]) -> Heads:
    """Heads of several groups of images as those of one group, in their order."""
    return Heads(
        tuple(np.concatenate(level) for level in zip(*(part.classes for part in parts), strict=True)),
        tuple(np.concatenate(level) for level in zip(*(part.boxes for part in parts), strict=True)),
    )


def _result(
    plan: Plan, backend: Backend, batches: Sequence[Sequence[int]], parts: Sequence[_Part], seconds: float
) -> Pass:
    counted = zip(backend.samples[-len(batches) :], batches, backend.copy_seconds[-len(batches) :], strict=True)
    timing = PassTiming(
        chip=plan.chip,
        batch=backend.batch,
        calls=tuple(CallSample(took, len(rows), copies) for took, rows, copies in counted),
        warm_up=tuple(backend.samples[: -len(batches)]),
        timer=backend.timer,
        includes_copies=backend.includes_copies,
        pass_seconds=seconds,
    )
    detections = Detections.concatenate([part.detections for part in parts])
    golden = joined_heads([part.golden for part in parts if part.golden is not None])
    return Pass(detections, timing, golden, max(0, len(detections.images) - len(plan.order)))
