"""The time a simulated device takes: the published one, virtual or waited for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

__all__ = ["Pace"]

#: Largest deviation of a run's time from the published one.
JITTER = 0.003
#: Bytes per second between host and device, as in a PCIe 3.0 slot of four lanes.
COPY_RATE = 3e9


class Pace:
    """
    How long runs take.

    Parameters
    ----------
    images_per_second : mapping of int to float
        Published throughput by batch size; between two of them it is interpolated.
    waits : bool
        Whether a run ends no sooner than its time and that of its copies; otherwise its time is only told.
    copy_rate : float
        Bytes per second between host and device.
    """

    def __init__(self, images_per_second: Mapping[int, float], *, waits: bool, copy_rate: float = COPY_RATE) -> None:
        self._batches, self._rates = zip(*sorted(images_per_second.items()), strict=True)
        self._waits, self._copy_rate = waits, copy_rate
        self._runs = 0

    def compute_ms(self, batch: int) -> float:
        """
        Milliseconds of the next run: batch over throughput, spread a little, in every session alike.

        Examples
        --------
        >>> round(Pace({1: 100.0, 4: 200.0}, waits=False).compute_ms(4), 1)
        20.0
        """
        # Imported late: whoever only names a chip need not wait for it.
        import numpy as np

        self._runs += 1
        # Sines of these numbers look like noise, and are the same on every machine.
        spread = JITTER * math.sin(self._runs * 12.9898)
        return 1e3 * batch / float(np.interp(batch, self._batches, self._rates)) * (1 + spread)

    def wait(self, milliseconds: float, start: float, copied: int) -> None:
        """
        Wait for the end of a run.

        Parameters
        ----------
        milliseconds : float
            Of the computation.
        start : float
            When the run began, its copy to the device first, in seconds of ``perf_counter``.
        copied : int
            Bytes that went to the device and back.
        """
        if self._waits:
            time.sleep(max(0.0, start + milliseconds / 1e3 + copied / self._copy_rate - time.perf_counter()))
