"""Whether a chip is ours alone: before we use it, and as long as we do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from support.ascend.devices import Npu
from support.ascend.npu_smi import ChipRow, InfoTable, NpuSmi, ProcessRow
from support.errors import DeviceBusyError, DeviceLostError, NoDeviceError, SuiteError, WrongDeviceError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Watch", "require_idle"]

#: A second look at what is wrong comes this much sooner. One alone proves nothing: a busy driver may leave a chip out,
#: and may still list a process of ours that has just ended.
SOONER = 5
#: Where the kernel names our process namespace, and its name for the one of the host: PROC_PID_INIT_INO of Linux,
#: include/linux/proc_ns.h.
NAMESPACE, OF_THE_HOST = Path("/proc/self/ns/pid"), "pid:[4026531836]"


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
        What this driver does not tell, and what it told that cannot be read.

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
            raise _lost([npu], table)
        load = chip.aicore if chip.aicore is not None else _asked_load(smi, npu)
        if processes or load:
            raise _busy(npu, load, processes)
        findings.update(dict.fromkeys(f"npu-smi: {problem}" for problem in table.problems))
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
    who = ", ".join(f"{process.pid or 'unknown pid'} {process.name}" for process in processes) or "no process listed"
    return DeviceBusyError(
        f"device {npu.title} is in use: AI core {'unknown' if load is None else f'{load} %'}, {who}",
        required="AI core 0 % and no process",
        remedy="stop the other job, choose another --device-id, or measure all the same with --allow-busy",
    )


def _lost(npus: Sequence[Npu], table: InfoTable) -> DeviceLostError:
    names = ", ".join(npu.title for npu in npus)
    unread = f" ({'; '.join(table.problems)})" if table.problems else ""
    return DeviceLostError(
        f"npu-smi lists device {names} no longer{unread}",
        required="a row of npu-smi info for each device in use",
        remedy="look at dmesg and npu-smi info; reset the device or restart the host",
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

    It looks every `interval` seconds and once more at the end, so that a short use is looked at too. What is wrong must
    be so in two looks in a row.

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
        Likewise, if a chip was no longer listed.
    SuiteError
        Likewise, if npu-smi failed. An error of the body itself comes first in all these cases.
    """

    def __init__(
        self, smi: NpuSmi, npus: Sequence[Npu], own_processes: Callable[[], Collection[int]], *, interval: float
    ) -> None:
        self._smi, self._npus, self._own, self._interval = smi, tuple(npus), own_processes, interval
        self._ended, self._failed = threading.Event(), False
        self._ours: set[int] = set()
        self._found: Exception | None = None
        self._thread = threading.Thread(target=self._look_until_ended, name="npu watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = error is not None
        self._ended.set()
        self._thread.join()
        if error is None and self._found is not None:
            raise self._found

    def _look_until_ended(self) -> None:
        doubt: Exception | None = None
        ended = False
        while not ended or doubt:
            if doubt:
                time.sleep(self._interval / SOONER)
            ended = self._ended.wait(0 if doubt else self._interval)
            if ended and self._failed:
                return
            found = self._look()
            if doubt and found:
                self._found = found
                return
            doubt = found

    def _look(self) -> Exception | None:
        try:
            table = self._smi.info()
            # All that were ever ours count: one may have ended since npu-smi looked.
            self._ours |= set(self._own())
        except NoDeviceError as error:
            return DeviceLostError(error.found, required=error.required, remedy=error.remedy)
        except Exception as error:
            # Raised where the watch ends: nobody sees what a thread raises.
            return error
        missing = [npu for npu in self._npus if _row(table, npu) is None]
        return _lost(missing, table) if missing else self._astray(table) or self._disturbed(table)

    def _disturbed(self, table: InfoTable) -> DeviceBusyError | None:
        for npu in self._npus:
            chip, foreign = _row(table, npu), _foreign(_on(table, npu), self._ours)
            if foreign:
                return _busy(npu, chip.aicore if chip else None, foreign)
        return None

    def _astray(self, table: InfoTable) -> WrongDeviceError | None:
        places = {(npu.npu_id, npu.chip_id) for npu in self._npus}
        for process in table.processes or ():
            if process.pid in self._ours and (process.npu_id, process.chip_id) not in places:
                return WrongDeviceError(
                    f"our process {process.pid} is on NPU {process.npu_id}, chip {process.chip_id}",
                    required=f"on {', '.join(npu.title for npu in self._npus)}",
                    remedy="the environment renumbers devices: check ASCEND_RT_VISIBLE_DEVICES and the container",
                )
        return None


def _foreign(processes: Sequence[ProcessRow], ours: Collection[int]) -> list[ProcessRow]:
    """Leave out our processes; in a container ours has the pid of the host, so a single unknown one may be ours."""
    others = [process for process in processes if process.pid not in ours]
    may_be_ours = len(others) == len(processes) == 1 and not _pids_are_of_the_host()
    return [] if may_be_ours else others


def _pids_are_of_the_host() -> bool:
    try:
        return str(NAMESPACE.readlink()) == OF_THE_HOST
    except OSError:
        return False
