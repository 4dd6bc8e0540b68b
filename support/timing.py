"""Timing samples of a pass, and the throughput they show with its interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from support.errors import NoTimingError, WrongDataError

__all__ = ["CallSample", "PassTiming", "ThroughputEstimate", "estimate", "student_t"]


@dataclass(frozen=True)
class CallSample:
    """
    One call of the device.

    `seconds` is what the call took. `images` is the number of real images in it: fewer than the batch size in a padded
    tail.
    """

    seconds: float
    images: int


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
    """

    chip: str
    batch: int
    calls: tuple[CallSample, ...]
    warm_up: tuple[float, ...]
    timer: str
    includes_copies: bool

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
    Throughput of a pass, with everything that is needed to compare it with a baseline.

    Parameters
    ----------
    images_per_second : float
        Batch size over the mean seconds of a call: what the device does with full batches.
    lower, upper : float
        Two-sided Student t interval of `images_per_second` at `confidence`; `upper` is infinite if the noise is as
        large as the mean.
    real_images_per_second : float
        The same, not counting the padding of the tail.
    calls, images : int
        Timed calls, and the real images in them.
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
    real_images_per_second: float
    calls: int
    images: int
    p50_ms: float
    p90_ms: float
    p99_ms: float


def estimate(timing: PassTiming, *, confidence: float, minimum_calls: int) -> ThroughputEstimate:
    """
    Estimate the throughput of a pass.

    The graph is static, so a padded tail costs the device a whole batch. The figure is therefore batch size × calls /
    seconds, as the guide and ``ais_bench`` compute it (1000 × batch size / mean ms of a call); counting real images
    instead would make it depend on how the size of the data set divides.

    Parameters
    ----------
    timing : PassTiming
        Samples of one pass.
    confidence : float
        Of the interval, for example 0.95. Calls are taken as independent.
    minimum_calls : int
        Fewest calls an interval may be computed from; at least 2.

    Raises
    ------
    NoTimingError
        If there are too few calls, or a sample is impossible.
    """
    _check(timing, minimum_calls)
    seconds = np.array([call.seconds for call in timing.calls])
    mean = float(seconds.mean())
    half = student_t(confidence, len(seconds) - 1) * float(seconds.std(ddof=1)) / math.sqrt(len(seconds))
    p50, p90, p99 = (float(value) * 1e3 for value in np.percentile(seconds, (50, 90, 99)))
    return ThroughputEstimate(
        chip=timing.chip,
        batch=timing.batch,
        timer=timing.timer,
        includes_copies=timing.includes_copies,
        confidence=confidence,
        images_per_second=timing.batch / mean,
        lower=timing.batch / (mean + half),
        upper=timing.batch / (mean - half) if half < mean else math.inf,
        real_images_per_second=timing.images / float(seconds.sum()),
        calls=len(seconds),
        images=timing.images,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
    )


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


def student_t(confidence: float, degrees: int) -> float:
    """
    Two-sided quantile of Student's t distribution.

    Found by bisection of the exact finite series for a whole number of degrees of freedom: Abramowitz and Stegun,
    *Handbook of Mathematical Functions*, 26.7.3 and 26.7.4. The result is good to about 1e-10 relative.

    Parameters
    ----------
    confidence : float
        Probability of lying between -t and +t; above 0 and below 1.
    degrees : int
        Degrees of freedom; at least 1.

    Examples
    --------
    >>> round(student_t(0.95, 1), 3), round(student_t(0.95, 10), 3), round(student_t(0.95, 4999), 3)
    (12.706, 2.228, 1.96)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _central_probability(angle: float, degrees: int) -> float:
    """Return P(-t < T < t), where t is the square root of `degrees` × the tangent of `angle`."""
    odd = degrees % 2
    series, term = 0.0, math.cos(angle) if odd else 1.0
    for place in range(1, degrees // 2 + 1):
        series += term
        term *= math.cos(angle) ** 2 * (2 * place - 1 + odd) / (2 * place + odd)
    central = math.sin(angle) * series
    return (angle + central) * 2 / math.pi if odd else central
