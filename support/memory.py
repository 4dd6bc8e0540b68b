"""Results that are computed once, and failures that fail once."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from support.errors import SuiteError

__all__ = ["Memory", "recalled", "remembered"]

Memory = dict[tuple[Any, ...], tuple[Any, SuiteError | None]]
P = ParamSpec("P")
T = TypeVar("T")


class _Remembering(Protocol):
    memory: Memory


R = TypeVar("R", bound=_Remembering)


def remembered(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """
    Keep what a method of an object with a `memory` returned, or the `SuiteError` it raised, for each of its arguments.

    A failure is kept like a result: what took minutes to fail must not be tried again for every clause that needs it.
    """

    @wraps(method)
    def call(self: R, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (method.__name__, args, tuple(sorted(kwargs.items())))
        if key not in self.memory:
            try:
                self.memory[key] = method(self, *args, **kwargs), None
            except SuiteError as error:
                # A copy: the traceback of the error itself would keep the arrays of all its frames alive.
                self.memory[key] = None, copy(error)
                raise
        value, failure = self.memory[key]
        if failure is not None:
            raise copy(failure)
        found: T = value
        return found

    return cast("Callable[Concatenate[R, P], T]", call)


def recalled(owner: _Remembering | None, name: str, *args: Any) -> Any:
    """
    Look up what a remembered method has returned, without calling it.

    Returns
    -------
    value : object or None
        None if it was not called with these arguments yet, or failed.
    """
    return None if owner is None else owner.memory.get((name, args, ()), (None, None))[0]
