"""Whether a series of timings has stopped drifting: at the end of the warm-up, and in the pass itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from support.intervals import mean_interval, student_t

if TYPE_CHECKING:
    from support.spec import Throughput

__all__ = ["WarmUp", "drift"]

#: Parts of a pass that are compared. J. Geweke, *Evaluating the Accuracy of Sampling-Based Approaches to the
#: Calculation of Posterior Moments* (1992), takes the first tenth and the second half; a fifth has more blocks.
HEAD, TAIL = 0.2, 0.5


@dataclass(frozen=True)
class WarmUp:
    """
    Tells when a warm-up may end: when its last block of calls is as fast as the block before.

    A block has `warm_up_calls` calls. Two blocks are alike if their means differ by no more than the noise of the later
    one explains (Student's t), or by less than `steady_change`. The noise is that from call to call in the later block
    (J. von Neumann's mean square successive difference, 1941): the scatter around its mean, or the slow first call in
    the earlier block, would hide the very drift that is looked for. After `warm_up_most` calls a warm-up ends in any
    case.

    Parameters
    ----------
    rules : support.spec.Throughput
        Lengths and tolerance.
    """

    rules: Throughput

    def __call__(self, seconds: Sequence[float]) -> bool:
        """Whether a warm-up with these durations may end."""
        return len(seconds) >= self.rules.warm_up_most or self.steady(seconds)

    def steady(self, seconds: Sequence[float]) -> bool:
        """Whether the last two blocks are alike; a warm-up of one block or less has not shown it."""
        block = self.rules.warm_up_calls
        if len(seconds) < 2 * block:
            return False
        before, last = np.array(seconds[-2 * block : -block]), np.array(seconds[-block:])
        noise = 0.0
        if block > 1:
            spread = math.sqrt(float(np.mean(np.diff(last) ** 2)) / 2)
            noise = student_t(self.rules.confidence, block - 1) * spread * math.sqrt(2 / block)
        allowed = max(noise, self.rules.steady_change * float(last.mean()))
        return abs(float(before.mean()) - float(last.mean())) <= allowed


def drift(seconds: Sequence[float], rules: Throughput) -> float:
    """
    Change of the time of a call from the head of a pass to its second half, if it is more than noise.

    Both means have intervals of their own by the method of batch means; their difference must be beyond the noise of
    both and beyond `steady_change`.

    Parameters
    ----------
    seconds : sequence of float
        Calls of a pass in their order.
    rules : support.spec.Throughput
        Rules of blocks, and the tolerance.

    Returns
    -------
    drift : float
        Relative to the second half, positive if the head was slower; 0 if the pass is steady or too short to tell.
    """
    series = np.array(seconds)
    head, tail = series[: int(len(series) * HEAD)], series[int(len(series) * TAIL) :]
    if len(head) < rules.blocks:
        return 0.0
    first, rest = (mean_interval([part], blocks=rules.blocks, times=rules.block_times) for part in (head, tail))
    degrees = min(first.degrees, rest.degrees)
    change = first.mean / rest.mean - 1
    noise = student_t(rules.judged_confidence, degrees) * math.hypot(first.error, rest.error) if degrees else math.inf
    return change if abs(change) > max(rules.steady_change, noise / rest.mean) else 0.0
