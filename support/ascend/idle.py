"""Whether a chip is ours alone: before we use it, and as long as we do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from support.ascend.devices import Npu
from support.ascend.npu_smi import ChipRow, InfoTable, NpuSmi, ProcessRow
from support.errors import DeviceBusyError, DeviceLostError, SuiteError, WrongDeviceError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Watch", "require_idle"]

#: A chip may be missing from one table of a busy driver; from two in a row it is gone.
MISSING_LOOKS = 2


def require_idle(smi: NpuSmi, npu: Npu, *, samples: int = 3, interval: float = 1.0) -> tuple[str, ...]:
    """
    Look several times whether a chip does nothing.

    Memory in use is no sign: an idle chip holds up to 3 GB.

    Parameters
    ----------
    smi : NpuSmi
        Asked `samples` times, `interval` seconds apart.
    npu : Npu
        The chip.

    Returns
    -------
    findings : tuple of str
        What this driver does not tell.

    Raises
    ------
    DeviceBusyError
        If its AI core is at work, or a process is on it.
    DeviceLostError
        If the chip is not listed any more.
    """
    findings: dict[str, None] = {}
    for place in range(samples):
        if place:
            time.sleep(interval)
        table = smi.info()
        chip, processes = _row(table, npu), _on(table, npu)
        if chip is None:
            raise DeviceLostError(f"npu-smi lists device {npu.title} no longer", remedy="look at dmesg")
        load = chip.aicore if chip.aicore is not None else _asked_load(smi, npu)
        if processes or load:
            raise _busy(npu, load, processes)
        if table.processes is None:
            findings["this driver lists no processes: only the AI core was looked at"] = None
        if load is None:
            findings["this driver tells no utilisation of the AI core"] = None
    return tuple(findings)


def _asked_load(smi: NpuSmi, npu: Npu) -> int | None:
    """Utilisation of the AI core where the table does not tell it."""
    try:
        usages = smi.usages(npu.npu_id)
    except SuiteError:
        return None
    return next((usage.values.get("Aicore Usage Rate(%)") for usage in usages if usage.chip_id == npu.chip_id), None)


def _busy(npu: Npu, load: int | None, processes: Sequence[ProcessRow]) -> DeviceBusyError:
    who = ", ".join(f"{process.pid} {process.name}" for process in processes) or "no process listed"
    return DeviceBusyError(
        f"device {npu.title} is in use: AI core {'unknown' if load is None else f'{load} %'}, {who}",
        required="AI core 0 % and no process",
        remedy="stop the other job, choose another --device-id, or measure all the same with --allow-busy",
    )


def _row(table: InfoTable, npu: Npu) -> ChipRow | None:
    place = npu.npu_id, npu.chip_id
    return next((chip for chip in table.chips if (chip.npu_id, chip.chip_id) == place), None)


def _on(table: InfoTable, npu: Npu) -> list[ProcessRow]:
    place = npu.npu_id, npu.chip_id
    return [process for process in table.processes or () if (process.npu_id, process.chip_id) == place]


class Watch:
    """
    Looks after chips while they are in use, in one thread of its own.

    Parameters
    ----------
    smi : NpuSmi
        Asked every `interval` seconds.
    npus : sequence of Npu
        The chips in use.
    own_processes : callable
        Gives the pids of the processes that may be on them.
    interval : float
        Seconds.

    Raises
    ------
    DeviceBusyError
        When the context is left, if somebody else was on one of the chips.
    WrongDeviceError
        Likewise, if our own process was on another chip.
    DeviceLostError
        Likewise, if a chip was no longer listed. An error of the body itself comes first in all these cases.
    """

    def __init__(
        self, smi: NpuSmi, npus: Sequence[Npu], own_processes: Callable[[], Collection[int]], *, interval: float
    ) -> None:
        self._smi, self._npus, self._own, self._interval = smi, tuple(npus), own_processes, interval
        self._stop = threading.Event()
        self._missing = 0
        self._found: SuiteError | None = None
        self._thread = threading.Thread(target=self._look_until_stopped, name="npu watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None and self._found is not None:
            raise self._found

    def _look_until_stopped(self) -> None:
        while self._found is None and not self._stop.wait(self._interval):
            try:
                self._look(self._smi.info())
            except SuiteError:
                # One call that fails says nothing about the chip.
                self._missing += 1
            if self._missing >= MISSING_LOOKS and self._found is None:
                names = ", ".join(npu.title for npu in self._npus)
                self._found = DeviceLostError(f"npu-smi lists {names} no longer", remedy="look at dmesg")

    def _look(self, table: InfoTable) -> None:
        own = set(self._own())
        rows = [_row(table, npu) for npu in self._npus]
        self._missing = self._missing + 1 if None in rows else 0
        for npu, chip in zip(self._npus, rows, strict=True):
            foreign = _foreign(_on(table, npu), own)
            if chip is not None and foreign:
                self._found = _busy(npu, chip.aicore, foreign)
        places = {(npu.npu_id, npu.chip_id) for npu in self._npus}
        astray = [p for p in table.processes or () if p.pid in own and (p.npu_id, p.chip_id) not in places]
        if astray:
            self._found = WrongDeviceError(
                f"our process {astray[0].pid} is on NPU {astray[0].npu_id}, chip {astray[0].chip_id}",
                required=f"on {', '.join(npu.title for npu in self._npus)}",
                remedy="the environment renumbers devices: check ASCEND_RT_VISIBLE_DEVICES and the container",
            )


def _foreign(processes: Sequence[ProcessRow], own: Collection[int]) -> list[ProcessRow]:
    """Leave out our processes. In a container ours has the pid of the host, so a single unknown one may be ours."""
    others = [process for process in processes if process.pid not in own]
    ours_may_be_unknown = len(others) == len(processes) == 1
    return [] if ours_may_be_unknown else others
