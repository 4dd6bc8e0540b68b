"""
The simulated device: a process of its own, as the real one is hardware of its own.

It is started by the simulated runtime as ``python -m support.simulator.device FOLDER DEVICE_ID`` and answers one JSON
object a line on its standard output for each on its standard input; tensors pass through files. It needs what the suite
needs; the runtime that talks to it needs NumPy alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.simulator.om import BrokenOmError, Om, OmTensor, read_om
from support.simulator.pace import Pace
from support.simulator.precision import lowered
from support.simulator.replay import Replay, graph_digest
from support.simulator.state import DeviceState

__all__ = ["Device", "main"]

#: ``aclDataType`` by NumPy's name.
DATATYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "uint8": 4, "int64": 9}
#: Runs after which a fault in the middle of a pass shows.
MIDDLE = 3
NAN_BATCH = 64

Answer = dict[str, Any]
#: Outputs of a batch: for each its rows, one for each image.
Outputs = Sequence[Sequence[NDArray[Any]]]
Compute = Callable[[NDArray[Any]], Outputs]


@dataclass(frozen=True)
class Loaded:
    """A model on the device; `compute` is None if it cannot run here. `previous` is what it gave in the last run."""

    om: Om
    compute: Compute | None
    previous: Outputs | None = None


class Device:
    """
    One chip with the models loaded on it.

    Parameters
    ----------
    folder : Path
        Of the simulated host.
    number : int
        Its device id.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._host: Mapping[str, Any] = json.loads((folder / "host.json").read_text(encoding="utf-8"))
        self._folder, self._state = folder, DeviceState(folder, number)
        self._faults = set(self._host["faults"])
        rates = {int(batch): float(rate) for batch, rate in self._host["images_per_second"].items()}
        self._paced = self._host["mode"] == "paced"
        self._pace = Pace(rates, waits=self._paced, copy_rate=float(self._host["copy_rate"]))
        self._shared = _Shared()
        self._models: dict[int, Loaded] = {}
        self._loads = 0

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """Do what a request asks for."""
        action = {"load": self._load, "run": self._run, "unload": self._unload}[request["op"]]
        return action(request)

    def _load(self, request: Mapping[str, Any]) -> Answer:
        if "crash-at-load" in self._faults:
            os.abort()
        if self._state.vanished:
            return _failed("ret:1", "[ERROR] open device failed, runtime result = 507033")
        if "no-memory" in self._faults:
            return _failed("ret:1", "[ERROR] device memory is not enough, ret:245000")
        try:
            om = read_om(Path(request["model"]))
        except (OSError, BrokenOmError) as error:
            return _failed("ret:1", f"EE4001: [PID: {os.getpid()}] model file is invalid: {error}")
        if om.soc_version != self._host["soc_version"]:
            return _failed(
                "ret:1", f"E19999: the model is of {om.soc_version}, the device is {self._host['soc_version']}"
            )
        number, self._loads = self._loads, self._loads + 1
        # Only static models of float32 run: no other may pass the suite's own check of what it loads.
        self._models[number] = Loaded(om, None if om.gears or om.aipp else self._computing(om))
        self._state.opened(client=os.getppid())
        sides = {side: [_described(tensor, om) for tensor in getattr(om, side)] for side in ("inputs", "outputs")}
        return {"ok": True, "model": number, "batch": om.inputs[0].shape[0], **sides}

    def _computing(self, om: Om) -> Compute:
        import onnx
        import onnxruntime

        graph = lowered(onnx.load_from_string(om.onnx), om.lowered, saturate=bool(self._host["saturates"]))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # The host has work of its own meanwhile: threads that wait must not keep its cores busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])

        def compute(tensor: NDArray[Any]) -> Any:
            return session.run(None, {om.inputs[0].name: tensor})

        if not self._paced:
            return compute
        kept = Replay(self._folder / "outputs" / graph_digest(graph), [tensor.shape[1:] for tensor in om.outputs])
        return partial(kept.outputs, compute=compute)

    def _run(self, request: Mapping[str, Any]) -> Answer:
        model = self._models[request["model"]]
        self._break_down()
        if self._state.vanished:
            return _failed("507899", "[ERROR] acl execute failed:507899", "execute model failed, modelId is 1")
        if model.compute is None:
            return _failed("-1", "[ERROR] acl execute failed:145000")
        with self._state.running():
            info = model.om.inputs[0]
            tensor = self._shared.bytes(request["input"]).view(info.dtype).reshape(info.shape)
            outputs = self._disturbed(request["model"], model.compute(tensor))
            copied = tensor.nbytes + _write(self._shared.bytes(request["output"]), outputs, model.om)
            milliseconds = self._pace.compute_ms(info.shape[0])
            self._pace.wait(milliseconds, request["since"], copied)
        return {"ok": True, "compute_ms": milliseconds}

    def _break_down(self) -> None:
        if "crash" in self._faults:
            os.abort()
        if "hang" in self._faults:
            # Until the other side is gone, so that nothing is left behind.
            sys.stdin.read()
            sys.exit()
        if "vanish" in self._faults and self._state.runs >= MIDDLE:
            self._state.vanish()

    def _disturbed(self, number: int, outputs: Outputs) -> Outputs:
        if "nan-at-64" in self._faults and len(outputs[0]) == NAN_BATCH:
            first = [np.full_like(outputs[0][0], np.nan), *outputs[0][1:]]
            outputs = [first, *outputs[1:]]
        if "previous-outputs" in self._faults:
            model = self._models[number]
            self._models[number] = replace(model, previous=outputs)
            # The first run has none before it.
            return outputs if model.previous is None else model.previous
        return outputs

    def _unload(self, request: Mapping[str, Any]) -> Answer:
        self._models.pop(request["model"], None)
        self._shared.clear()
        if not self._models:
            self._state.closed()
        return {"ok": True}

    def close(self) -> None:
        """Give the device back."""
        self._state.closed()


def _failed(code: str, *log: str) -> Answer:
    return {"ok": False, "code": code, "log": list(log)}


def _described(tensor: OmTensor, om: Om) -> dict[str, Any]:
    largest = [max(om.gears) if side == -1 else side for side in tensor.shape]
    size = int(np.prod(largest)) * np.dtype(tensor.dtype).itemsize
    return {
        "name": tensor.name,
        "datatype": DATATYPES[tensor.dtype],
        "format": 1 if om.aipp and tensor.dtype == "uint8" else 0,
        "shape": list(tensor.shape),
        "size": size,
        "realsize": size,
    }


class _Shared:
    """Files that another process maps too, mapped once: fresh pages cost as much as filling them."""

    def __init__(self) -> None:
        self._mapped: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def bytes(self, path: str) -> NDArray[np.uint8]:
        found = Path(path).stat()
        key = found.st_dev, found.st_ino
        if key not in self._mapped:
            # A file stays what it is as long as it is mapped, so no other gets its number.
            self._mapped[key] = np.memmap(path, np.uint8, "r+")
        return self._mapped[key]

    def clear(self) -> None:
        self._mapped.clear()


def _write(target: NDArray[np.uint8], outputs: Outputs, om: Om) -> int:
    """Write outputs one after the other, each in its type; returns how many bytes."""
    end = 0
    for info, rows in zip(om.outputs, outputs, strict=True):
        for row in rows:
            data = np.ascontiguousarray(row, info.dtype).reshape(-1).view(np.uint8)
            target[end : end + data.size] = data
            end += data.size
    return end


def main(arguments: Sequence[str]) -> None:
    """Serve until the other side closes."""
    device = Device(Path(arguments[0]), int(arguments[1]))
    # What libraries print must not reach the other side as an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        # The other side may be killed in the middle of a run.
        with suppress(BrokenPipeError):
            for line in sys.stdin:
                answers.write(json.dumps(device.answer(json.loads(line))) + "\n")
                answers.flush()
    finally:
        device.close()


if __name__ == "__main__":
    main(sys.argv[1:])
