"""Timing samples of a pass, and the throughput they show with its interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from support.errors import NoTimingError, WrongDataError
from support.intervals import MeanInterval, mean_interval
from support.load import LoadSample

if TYPE_CHECKING:
    from support.spec import Throughput

__all__ = ["CallSample", "PassTiming", "RepeatSamples", "ThroughputEstimate", "estimate"]


@dataclass(frozen=True)
class CallSample:
    """
    One call of the device.

    `seconds` is what the call took. `images` is the number of real images in it: fewer than the batch size in a padded
    tail. `copies` are the seconds of the copies to and from the device where they are not in `seconds` and the runtime
    tells them.
    """

    seconds: float
    images: int
    copies: float | None = None


@dataclass(frozen=True)
class RepeatSamples:
    """
    Seconds of calls on new images and on the same image again, one after the other in one session of the runtime.

    The first call of the session is in neither, nor is the first call on the image that is then repeated in `repeated`:
    it is one on new input.
    """

    fresh: tuple[float, ...]
    repeated: tuple[float, ...]


@dataclass(frozen=True)
class PassTiming:
    """
    Every timing sample of one pass over the data at one batch size.

    Parameters
    ----------
    chip : str
        Chip that was timed.
    batch : int
        Batch size of the static graph; every call computes that many images, padded or not.
    calls : tuple of CallSample
        The timed calls, in order.
    warm_up : tuple of float
        Seconds of the calls made before timing began; kept, never counted.
    timer : str
        What lies between start and stop, for example ``"wall time of session.run, copies included"``.
    includes_copies : bool
        Whether copies between host and device lie between start and stop.
    pass_seconds : float or None
        From the first timed call to the last detection, as the clock on the wall has it: reading, computing and
        decoding of every image. None where nobody took it.
    load : tuple of LoadSample
        What else was seen on the machine.
    repeats : RepeatSamples or None
        Of another session with the same model.
    further : tuple of PassTiming
        Passes made afterwards because this one did not decide; they have none themselves.
    """

    chip: str
    batch: int
    calls: tuple[CallSample, ...]
    warm_up: tuple[float, ...]
    timer: str
    includes_copies: bool
    pass_seconds: float | None = None
    load: tuple[LoadSample, ...] = ()
    repeats: RepeatSamples | None = None
    further: tuple[PassTiming, ...] = ()

    @property
    def passes(self) -> tuple[PassTiming, ...]:
        """The pass and the further ones."""
        return self, *self.further

    def looks(self, count: int) -> PassTiming:
        """Return the first passes alone."""
        return replace(self, further=self.further[: count - 1])

    @property
    def images(self) -> int:
        """Real images in all timed calls."""
        return sum(call.images for call in self.calls)

    def as_json(self) -> dict[str, Any]:
        """Return the timing as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PassTiming:
        """
        Read what `as_json` wrote.

        Raises
        ------
        WrongDataError
            If a field is missing or is of another type.
        """
        try:
            return TypeAdapter(cls).validate_python(record)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise WrongDataError(f"timing samples: {where}: {first['msg']}", required="what a pass recorded") from None


@dataclass(frozen=True)
class ThroughputEstimate:
    """
    Throughput of one or more passes, with everything that is needed to compare it with a baseline.

    Parameters
    ----------
    images_per_second : float
        Batch size over the mean seconds of a call: what the device does with full batches.
    lower, upper : float
        Two-sided interval of `images_per_second` at `confidence`; `lower` is 0 and `upper` infinite where nothing
        bounds it.
    judged_lower, judged_upper : float
        The same at the confidence a comparison is judged at, which leaves room for several looks.
    real_images_per_second : float
        The figure without the padding of the tail.
    passes, calls, images : int
        Passes, their timed calls, and the real images of one pass.
    blocks, block_calls : int
        Blocks the interval comes from, and calls in one.
    autocorrelation : float or None
        Calls it takes until the next independent one; None where there are too few to measure it.
    p50_ms, p90_ms, p99_ms : float
        Percentiles of the latency of a call (a whole batch), in ms, interpolated linearly.
    """

    chip: str
    batch: int
    timer: str
    includes_copies: bool
    confidence: float
    images_per_second: float
    lower: float
    upper: float
    judged_lower: float
    judged_upper: float
    real_images_per_second: float
    passes: int
    calls: int
    images: int
    blocks: int
    block_calls: int
    autocorrelation: float | None
    p50_ms: float
    p90_ms: float
    p99_ms: float


def estimate(timing: PassTiming, rules: Throughput) -> ThroughputEstimate:
    """
    Estimate the throughput of a pass, or of several together.

    The estimand is the mean over a full pass. The graph is static, so a padded tail costs the device a whole batch. The
    figure is therefore batch size × calls / seconds, as the guide and ``ais_bench`` compute it (1000 × batch size /
    mean ms of a call); counting real images instead would make it depend on how the size of the data set divides.

    The interval is that of `support.intervals.mean_interval`: blocks of calls, since neighbouring calls share clocks,
    temperature and other load. Where a pass disagrees with another beyond the noise of both, no interval of their mean
    would hold for the next pass, and the one given here covers the intervals of all of them.

    Only passes follow each other here. Where two things are timed in one session of a runtime, they should take turns,
    so that drift meets both alike; the gate has no such place: baselines are published or of an earlier session.

    Parameters
    ----------
    timing : PassTiming
        Samples of a pass, with those of further ones.
    rules : support.spec.Throughput
        Confidence, fewest calls, and rules of blocks.

    Raises
    ------
    NoTimingError
        If there are too few calls, or a sample is impossible.
    """
    for one in timing.passes:
        _check(one, rules.minimum_calls)
    series = [np.array([call.seconds for call in one.calls]) for one in timing.passes]
    seconds = np.concatenate(series)
    found = _interval(series, rules)
    lower, upper = _rates(timing.batch, [found], rules.confidence)
    judged_lower, judged_upper = _rates(timing.batch, _judged(series, found, rules), rules.judged_confidence)
    p50, p90, p99 = (float(value) * 1e3 for value in np.percentile(seconds, (50, 90, 99)))
    return ThroughputEstimate(
        chip=timing.chip,
        batch=timing.batch,
        timer=timing.timer,
        includes_copies=timing.includes_copies,
        confidence=rules.confidence,
        images_per_second=timing.batch / found.mean,
        lower=lower,
        upper=upper,
        judged_lower=judged_lower,
        judged_upper=judged_upper,
        real_images_per_second=timing.images * len(series) / float(seconds.sum()),
        passes=len(series),
        calls=len(seconds),
        images=timing.images,
        blocks=found.degrees + 1,
        block_calls=found.block,
        autocorrelation=found.time,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
    )


def _interval(series: Sequence[NDArray[np.float64]], rules: Throughput) -> MeanInterval:
    return mean_interval(series, blocks=rules.blocks, times=rules.block_times)


def _judged(series: Sequence[NDArray[np.float64]], together: MeanInterval, rules: Throughput) -> Sequence[MeanInterval]:
    """Return the interval of all passes together, or one of each if they disagree."""
    each = [_interval([one], rules) for one in series]
    bounds = [one.bounds(rules.judged_confidence) for one in each]
    agree = max(low for low, _ in bounds) <= min(high for _, high in bounds)
    return [together] if agree else each


def _rates(batch: int, intervals: Sequence[MeanInterval], confidence: float) -> tuple[float, float]:
    """Turn intervals of the seconds of a call into one of images a second."""
    bounds = [one.bounds(confidence) for one in intervals]
    fast, slow = min(low for low, _ in bounds), max(high for _, high in bounds)
    return batch / slow, batch / fast if fast > 0 else math.inf


def _check(timing: PassTiming, minimum_calls: int) -> None:
    where = f"batch {timing.batch} on {timing.chip}"
    required = max(minimum_calls, 2)  # one sample has no spread
    if len(timing.calls) < required:
        raise NoTimingError(
            f"{where}: {len(timing.calls)} timed calls ({timing.timer})",
            required=f"at least {required} (throughput.minimum_calls)",
            remedy="run over more images, or without the largest batch sizes",
        )
    for place, call in enumerate(timing.calls):
        if not (math.isfinite(call.seconds) and call.seconds > 0):
            raise NoTimingError(f"{where}: call {place} took {call.seconds} s", required="a positive, finite duration")
        if not 0 < call.images <= timing.batch:
            raise NoTimingError(f"{where}: call {place} has {call.images} images", required=f"1 to {timing.batch}")
