"""How sure the mean of a series of timings is when its values depend on each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["MeanInterval", "autocorrelation_time", "mean_interval", "student_t"]

#: The sum of correlations ends at the first lag that is so many times the autocorrelation time found up to there:
#: A. Sokal, *Monte Carlo Methods in Statistical Mechanics* (1997), section 3. Later lags add noise alone.
WINDOW = 5.0


@dataclass(frozen=True)
class MeanInterval:
    """
    The mean of one or more series, and how far it may be off.

    Parameters
    ----------
    mean : float
        Over all values, in their unit.
    error : float
        Standard error of the mean, in the same unit.
    degrees : int
        Degrees of freedom of the standard error: blocks less one. None is left where a single block is all there is.
    block : int
        Values in a block, at least.
    time : float or None
        Integrated autocorrelation time in values; None where there are too few to measure it.
    """

    mean: float
    error: float
    degrees: int
    block: int
    time: float | None

    def bounds(self, confidence: float) -> tuple[float, float]:
        """
        Two-sided interval of Student's t; from minus to plus infinity where no degree of freedom is left.

        Examples
        --------
        >>> low, high = MeanInterval(mean=2.0, error=0.1, degrees=10, block=1, time=None).bounds(0.95)
        >>> round(low, 3), round(high, 3)
        (1.777, 2.223)
        """
        half = student_t(confidence, self.degrees) * self.error if self.degrees else math.inf
        return self.mean - half, self.mean + half


def mean_interval(series: Sequence[NDArray[np.float64]], *, blocks: int, times: float) -> MeanInterval:
    """
    Estimate a mean by the method of batch means, which needs no independent values.

    Every series is cut into at most `blocks` blocks of nearly equal length, each at least `times` autocorrelation
    times long, so that the means of blocks hardly depend on each other; their scatter gives the standard error. More
    and shorter blocks would gain next to nothing (B. Schmeiser, *Batch Size Effects in the Analysis of Simulation
    Output*, Operations Research 30, 1982), and longer ones suffer least where the autocorrelation time is estimated too
    short. Where a series is too short for `blocks` such blocks, there are fewer of them, and Student's t widens the
    interval; one that is too short even for two has no interval of its own.

    A series of fewer than `blocks` × `times` values has no room for `blocks` such blocks even if its values are
    independent, and tells too little of whether they are. There every value is a block, as if they were.

    Parameters
    ----------
    series : sequence of (N,) ndarray of float64
        One or more series of the same quantity, each in the order of time. No block spans two of them.
    blocks : int
        Most blocks of a series; at least 2.
    times : float
        Autocorrelation times in a block, at least.
    """
    values = np.concatenate(series)
    mean = float(values.mean())
    shortest = min(map(len, series))
    time = autocorrelation_time(series) if shortest >= blocks * times else None
    count = shortest if time is None else max(1, min(blocks, int(shortest / (times * time))))
    parts = [part for one in series for part in np.array_split(one, count)]
    squares = sum(len(part) * (float(part.mean()) - mean) ** 2 for part in parts)
    degrees = len(parts) - 1
    error = math.sqrt(squares / degrees / len(values)) if degrees else math.inf
    return MeanInterval(mean, error, degrees, shortest // count, time)


def autocorrelation_time(series: Sequence[NDArray[np.float64]]) -> float:
    """
    Integrated autocorrelation time: how many values tell as much of the mean as one independent value would.

    It is 1 + 2 × the sum of the autocorrelations up to a window that it chooses itself (`WINDOW`). A short series shows
    too short a time, because its own mean follows its slow movements, and an uncertain one. The factor
    1 + (2 W + 1) / N for a window of W lags and N values makes good for the first (U. Wolff, *Monte Carlo errors with
    less errors*, Computer Physics Communications 156, 2004). What is returned is the upper end of two standard errors,
    each the square root of (4 W + 2) / N of it (Sokal, as above). It is never below 1: values that alternate around
    their mean are taken as independent.

    Parameters
    ----------
    series : sequence of (N,) ndarray of float64
        Each in the order of time, with at least 2 values; they share one mean.

    Examples
    --------
    >>> autocorrelation_time([np.array([1.0] * 2000 + [2.0] * 2000)]) > 100
    True
    """
    values = np.concatenate(series)
    if np.ptp(values) == 0:  # what is left after the mean is subtracted would be rounding alone
        return 1.0
    mean, length = float(values.mean()), min(map(len, series))
    # All lags at once through the power spectrum; zeros behind the values keep the ends from meeting.
    spectra = [np.abs(np.fft.rfft(one[:length] - mean, 2 * length)) ** 2 for one in series]
    covariance = np.fft.irfft(np.sum(spectra, axis=0))[:length]
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    ended = np.arange(length) >= WINDOW * times
    window = int(np.argmax(ended)) if ended.any() else length - 1
    count = length * len(series)
    unbiased = max(1.0, float(times[window])) * (1 + (2 * window + 1) / count)
    return unbiased * (1 + 2 * math.sqrt((4 * window + 2) / count))


@lru_cache(maxsize=1024)
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
