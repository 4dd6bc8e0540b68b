"""A compiled model on an Ascend NPU, through aclruntime in a process of its own."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.ascend.acl_errors import explain, last_lines
from support.ascend.acl_python import WORKER, AclPython
from support.ascend.host import AscendHost
from support.ascend.transfer import PLACES, Transfer
from support.backends.base import Backend, TensorInfo, only_input
from support.errors import (
    ContractViolationError,
    DeviceLostError,
    NoDataError,
    NoSpaceError,
    SuiteTimeoutError,
    ToolError,
)
from support.own_folders import OwnFolder

__all__ = ["AclBackend"]

#: Seconds between two looks whether outputs are here; they take several times as long.
LOOK_EVERY = 2e-4
#: Seconds a worker gets to unload its model before it is killed.
FAREWELL = 10.0


class AclBackend(Backend):
    """
    A compiled model on one NPU.

    The runtime lives in a worker process: a crash or a stuck device ends that process and not this one, and the end of
    the process gives the memory of the device back. Inputs and outputs lie in memory that both processes share; outputs
    are moved there while the device computes the next batch.

    Any thread may use it, with its time limits. The worker ends with the thread that entered the context: this is how
    the kernel ends it, even in a stuck native call, when this process is killed.

    Parameters
    ----------
    path : Path
        Compiled model with a static batch.
    host : AscendHost
        Environment of the worker.
    python : AclPython
        Its interpreter.
    device_id : int
        Device id as aclruntime counts.
    scratch : Path or None
        Where tensors pass if memory has no room for them.
    load_seconds, call_seconds : float
        Limits for loading, and for one run.

    Attributes
    ----------
    copies : list of (float, float) or None
        Seconds of the copies to and from the device of every call; None where this generation does not tell.
    walls : list of float
        Seconds of every call as this process sees it.
    """

    timer = "NPU_compute_time: aclmdlExecute, device compute only"
    includes_copies = False

    def __init__(
        self,
        path: Path,
        *,
        host: AscendHost,
        python: AclPython,
        device_id: int,
        scratch: Path | None,
        load_seconds: float,
        call_seconds: float,
    ) -> None:
        self._path, self._host, self._python, self._device_id = path, host, python, device_id
        self._scratch, self._load_seconds, self._call_seconds = scratch, load_seconds, call_seconds
        self._worker: _Worker | None = None
        self.copies: list[tuple[float, float] | None] = []
        self.walls: list[float] = []

    @property
    def worker_pid(self) -> int | None:
        """Process that holds the device; None outside the context."""
        return self._worker.pid if self._worker else None

    def _open(self) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
        self.copies, self.walls, self._calls = [], [], 0
        self._worker = worker = _Worker(self._host, self._python)
        model = worker.take(self._path)
        step = f"loading the model {self._path}"
        found = worker.ask(self._load_seconds, step, op="open", model=model, device=self._device_id)
        inputs, outputs = ([_static(item, self._path) for item in found[side]] for side in ("inputs", "outputs"))
        tensor = only_input(tuple(inputs), self._path.name)
        sizes = [[item["bytes"] for item in found[side]] for side in ("inputs", "outputs")]
        self._transfer = Transfer(sizes[0][0], sizes[1], self._scratch)
        try:
            layout = {"input": sizes[0][0], "places": PLACES, "outputs": self._transfer.outputs_start}
            worker.ask(self._load_seconds, "mapping the tensors", op="map", path=str(self._transfer.path), **layout)
        finally:
            self._transfer.unlink()
        self._places = [self._transfer.input(place).view(np.float32).reshape(tensor.shape) for place in range(PLACES)]
        return tensor, tuple(outputs)

    def places(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give the two inputs that both processes map."""
        first, second = self._places
        return first, second

    def _run(self, tensor: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        assert self._worker is not None, "the context is entered"
        self._calls += 1
        times = self._worker.ask(self._call_seconds, f"call {self._calls}", op="run", place=self._place(tensor))
        if len(times["compute"]) != 1:
            raise ToolError(f"the runtime recorded {len(times['compute'])} executions for one call")
        self._compute: float = times["compute"][0] / 1e3
        known = times["h2d"] is not None and times["d2h"] is not None
        self.copies.append((times["h2d"] / 1e3, times["d2h"] / 1e3) if known else None)
        pairs = zip(self.outputs, self._transfer.outputs(), strict=True)
        return {info.name: data.view(info.dtype).reshape(info.shape) for info, data in pairs}

    @property
    def copy_seconds(self) -> list[float | None]:
        """Seconds of the copies of every call to and from the device; None where this generation does not tell."""
        return [None if copies is None else sum(copies) for copies in self.copies]

    def _place(self, tensor: NDArray[np.float32]) -> int:
        for place, known in enumerate(self._places):
            if tensor.ctypes.data == known.ctypes.data:
                return place
        self._places[0][:] = tensor
        return 0

    def _fetch(self) -> Callable[[], None]:
        assert self._worker is not None, "the context is entered"
        worker, transfer, call = self._worker, self._transfer, self._calls
        worker.ask(self._call_seconds, f"outputs of call {call}", op="fetch", mark=call)
        return partial(worker.wait_for, call, transfer, self._call_seconds)

    def _seconds(self, wall: float) -> float:
        self.walls.append(wall)
        return self._compute

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def _static(item: Mapping[str, Any], path: Path) -> TensorInfo:
    info = TensorInfo(item["name"], tuple(item["shape"]), item["dtype"])
    if any(side < 0 for side in info.shape):
        raise ContractViolationError(
            f"{path.name}: {info} is dynamic", required="a static shape", remedy="compile one model for each batch size"
        )
    if info.dtype != "float32":
        raise ContractViolationError(
            f"{path.name}: {info.name} is {info.dtype}",
            required="float32 inputs and outputs",
            remedy="compile without AIPP and with --output_type=FP32, which is the default",
        )
    if int(np.prod(info.shape)) * 4 != item["bytes"]:
        raise ContractViolationError(
            f"{path.name}: {info} has {item['bytes']} bytes",
            required="four for each element",
            remedy="the compiled model is damaged, or is of another runtime: compile it with this CANN",
        )
    return info


class _Worker:
    """The worker process, the pipes to it, and what it printed."""

    def __init__(self, host: AscendHost, python: AclPython) -> None:
        # A folder of our own: the runtime refuses models that others may change, links, and odd names.
        self._own = OwnFolder("acceptance-model-")
        self._folder = self._own.path
        self._log = self._folder / "native.log"
        their_read, our_write = os.pipe()
        our_read, their_write = os.pipe()
        command = [str(python.path), str(WORKER), "--serve", str(their_read), str(their_write)]
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    # Whatever the runtime leaves behind when it is killed goes with the folder.
                    env={**host.env, "TMPDIR": str(self._folder)},
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(their_read, their_write),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(our_read)
            os.close(our_write)
            self._own.close()
            raise ToolError(f"{python.path} cannot be started: {error}", remedy="check --acl-python") from error
        finally:
            os.close(their_read)
            os.close(their_write)
        self._write, self._read = os.fdopen(our_write, "w", encoding="utf-8"), our_read

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def take(self, model: Path) -> str:
        """Copy a model to where the runtime accepts it; returns its path."""
        target = self._folder / "model.om"
        with _copying(model, target):
            shutil.copyfile(model, target)
            target.chmod(0o600)
        return str(target)

    def ask(self, seconds: float, step: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; `step` names it in errors."""
        try:
            self._send(request, step)
            answer: dict[str, Any] = json.loads(self._line(seconds, step))
        except SuiteTimeoutError as error:  # also the alarm of a deadline
            self._process.kill()
            raise SuiteTimeoutError(f"{error.found}{last_lines(self._native())}", remedy=error.remedy) from None
        except BaseException:
            # A late answer would be taken for that of the next request, and a stuck worker would hold the device.
            self._process.kill()
            raise
        if not answer["ok"]:
            failure = explain(answer["error"], self._native())
            raise type(failure)(f"{step}: {failure.found}", remedy=failure.remedy)
        return answer

    def wait_for(self, call: int, transfer: Transfer, seconds: float) -> None:
        """Wait until the outputs of a call are here; any thread may."""
        step, end = f"outputs of call {call}", time.monotonic() + seconds
        while (mark := transfer.mark) != call:
            if mark < 0:
                raise ToolError(f"{step} could not be written{last_lines(self._native())}")
            if self._process.poll() is not None and transfer.mark != call:
                raise self._lost(step)
            if time.monotonic() > end:
                raise SuiteTimeoutError(
                    f"{step} were not here after {seconds:g} s", remedy="the host may be overloaded"
                )
            time.sleep(LOOK_EVERY)

    def _send(self, request: Mapping[str, Any], step: str) -> None:
        try:
            self._write.write(json.dumps(request) + "\n")
            self._write.flush()
        except OSError:
            raise self._lost(step) from None

    def _line(self, seconds: float, step: str) -> bytes:
        line, ready = b"", select.poll()
        ready.register(self._read, select.POLLIN)
        while not line.endswith(b"\n"):
            if not ready.poll(seconds * 1e3):
                raise SuiteTimeoutError(
                    f"{step} had not ended after {seconds:g} s",
                    remedy="the device may be stuck: npu-smi info -t health; the limits are in the spec's [timeouts]",
                )
            piece = os.read(self._read, 65536)
            if not piece:
                raise self._lost(step)
            line += piece
        return line

    def _lost(self, step: str) -> DeviceLostError:
        status = self._process.wait()
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return DeviceLostError(
            f"the process of the runtime ended with {how} in {step}{last_lines(self._native())}",
            remedy="look at its last lines, dmesg and npu-smi info -t health; core dumps tell where it crashed",
        )

    def _native(self) -> str:
        with suppress(OSError):
            return self._log.read_bytes()[-65536:].decode("utf-8", "replace")
        return ""

    def close(self) -> None:
        """Unload the model, or kill the process; either gives the device back."""
        with suppress(OSError, ValueError):
            self._write.write('{"op": "close"}\n')
            self._write.close()
        try:
            self._process.wait(FAREWELL)
        except BaseException as error:
            self._process.kill()
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            os.close(self._read)
            self._own.close()


@contextmanager
def _copying(model: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"{target.parent} has no room for a copy of {model}",
                required=f"{model.stat().st_size / 2**20:.0f} MiB",
                remedy="set TMPDIR to a folder on a disk with room",
            ) from error
        raise NoDataError(
            f"{model} cannot be read: {error.strerror}", required="a compiled model", remedy="check the path of the om"
        ) from error
