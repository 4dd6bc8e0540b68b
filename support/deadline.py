"""Time limits for steps that run in this process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from support.errors import SuiteTimeoutError

__all__ = ["deadline"]


@contextmanager
def deadline(seconds: float, step: str) -> Iterator[None]:
    """
    Interrupt a step that takes too long.

    The alarm reaches Python code and whatever returns to it; native code that never returns needs a process of its
    own. Only the main thread can be interrupted, elsewhere the limit has no effect. An outer alarm is put back
    afterwards, with the time that is left of it.

    Parameters
    ----------
    seconds : float
        Limit.
    step : str
        Named in the error.

    Raises
    ------
    SuiteTimeoutError
        When the limit is reached.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise SuiteTimeoutError(
            f"{step} took longer than {seconds:g} s",
            remedy="look for a hung tool; the limits are in the spec's [timeouts]",
        )

    before = signal.signal(signal.SIGALRM, expired)
    start = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3), interval)
