"""Progress of long steps, as a protocol the steps report to without knowing who shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Advance", "Progress", "SilentProgress"]

#: Called with (items done, items in all).
Advance = Callable[[int, int], None]


class Progress(Protocol):
    """Somebody who shows progress."""

    def step(self, title: str) -> AbstractContextManager[Advance]:
        """Begin a step; the context gives the function to call as it advances."""


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        """Begin a step nobody watches."""
        yield lambda done, total: None
