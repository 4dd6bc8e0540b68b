"""The contract every runtime fulfils."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from support.errors import ContractViolationError, ToolError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Backend", "TensorInfo", "only_input", "runtime_failure"]


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and dtype of a network input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class Backend(ABC):
    """
    A model loaded on a device, as a context manager.

    The device is touched only between entering and leaving the context. Subclasses load in `_open`, which returns the
    descriptions of input and outputs, compute in `_run` and let go in `_close`.

    Attributes
    ----------
    timer : str
        What one sample of time includes, in words, for the passport of a throughput figure.
    includes_copies : bool
        Whether a sample includes the copies between host and device.
    input : TensorInfo
        The only input; known once the context is entered.
    outputs : tuple of TensorInfo
        In the order of the model; known once the context is entered.
    samples : list of float
        Seconds of every call so far, by the clock `timer` names.
    """

    timer: ClassVar[str]
    includes_copies: ClassVar[bool]
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    samples: list[float]
    _computed: Mapping[str, NDArray[np.float32]] | None

    def __enter__(self) -> Self:
        self.samples, self._computed = [], None
        try:
            self.input, self.outputs = self._open()
        except BaseException:
            # A context that was not entered is not left, and a half-opened session holds the device.
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def batch(self) -> int:
        """Images in one call."""
        return self.input.shape[0]

    @property
    def copy_seconds(self) -> list[float | None]:
        """Seconds of the copies of every call so far, where samples do not include them and the runtime tells them."""
        return [None] * len(self.samples)

    def places(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """
        Give two places for inputs: one to be filled while the device reads from the other.

        Any array may be given to `compute`; one of these needs no copying in this process.
        """
        return np.empty(self.input.shape, np.float32), np.empty(self.input.shape, np.float32)

    def compute(self, tensor: NDArray[np.float32]) -> None:
        """
        Compute one batch; its outputs stay with the runtime until they are fetched, or the next one is computed.

        Parameters
        ----------
        tensor : (B, 3, S, S) ndarray of float32
            Normalised input, C-contiguous, of exactly the shape of `input`.

        Raises
        ------
        ValueError
            If `tensor` is not what `input` describes; native code must not see it.
        ContractViolationError
            If the runtime gives other outputs than it declared.
        ToolError
            If the runtime fails.
        """
        self._check_input(tensor)
        # Outputs nobody fetched are not kept while the next ones are made.
        self._computed = None
        start = time.perf_counter()
        outputs = self._run(tensor)
        self.samples.append(self._seconds(time.perf_counter() - start))
        self._check_outputs(outputs)
        self._computed = outputs

    def fetch(self) -> Callable[[], dict[str, NDArray[np.float32]]]:
        """
        Begin to fetch the outputs of the last call, which may go on while the next one is computed.

        What was fetched before is overwritten: nobody may need it any more.

        Returns
        -------
        fetched : callable
            Waits until they are here, in any thread, and gives every output of the model by name. They stay as they
            are until the next `fetch`, also when the context is left.
        """
        if self._computed is None:
            raise ValueError("there are no outputs to fetch: nothing was computed since the last time")
        outputs, self._computed = dict(self._computed), None
        wait = self._fetch()

        def fetched() -> dict[str, NDArray[np.float32]]:
            wait()
            return outputs

        return fetched

    def infer(self, tensor: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Compute one batch and fetch its outputs, with the errors of both; they last as long as those of `fetch`."""
        self.compute(tensor)
        return self.fetch()()

    def _check_input(self, tensor: NDArray[np.float32]) -> None:
        found = TensorInfo(self.input.name, tensor.shape, tensor.dtype.name)
        if found != self.input:
            raise ValueError(f"the input is {found}, the model takes {self.input}")
        if not (tensor.flags.c_contiguous and tensor.dtype.isnative):
            raise ValueError(f"the input {found} must be C-contiguous and of native byte order")

    def _check_outputs(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        found = {name: TensorInfo(name, value.shape, value.dtype.name) for name, value in outputs.items()}
        declared = {info.name: info for info in self.outputs}
        if found != declared:
            raise ContractViolationError(
                f"the runtime gave {', '.join(map(str, found.values()))}",
                required=f"as declared: {', '.join(map(str, declared.values()))}",
                remedy="the runtime or the compiled model",
            )

    @abstractmethod
    def _open(self) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
        """Load the model and describe its input and outputs."""

    @abstractmethod
    def _run(self, tensor: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        """
        Compute one batch; blocks until the device could compute the next.

        The outputs may be still on their way until `_fetch` has been waited for, and must outlive the next run.
        """

    def _fetch(self) -> Callable[[], None]:
        """Begin to fill the outputs that `_run` gave, and return what waits for that; here `_run` has filled them."""
        return _nothing

    def _seconds(self, wall: float) -> float:
        """Return the sample of the last call: its wall time, unless the device itself tells its time."""
        return wall

    @abstractmethod
    def _close(self) -> None:
        """Give back the device."""


def _nothing() -> None:
    pass


def only_input(inputs: tuple[TensorInfo, ...], where: str) -> TensorInfo:
    """Return the single input of a model, refusing models with none or several."""
    if len(inputs) != 1:
        raise ContractViolationError(
            f"{where} has {len(inputs)} inputs: {', '.join(map(str, inputs)) or 'none'}", required="exactly one input"
        )
    return inputs[0]


def runtime_failure(runtime: str, error: Exception) -> ToolError:
    """Wrap what a native runtime raised; the first line of its message is the cause, the rest repeats it."""
    return ToolError(f"{runtime} failed: {str(error).strip()[:500] or type(error).__name__}")
