"""What else happened on the machine while a pass was timed: clocks, temperature, throttling, other load."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import psutil

from support.errors import SuiteError

if TYPE_CHECKING:
    from typing_extensions import Self

    from support.ascend.devices import Npu
    from support.ascend.npu_smi import NpuSmi

__all__ = ["GpuProbe", "HostProbe", "LoadSample", "LoadWatch", "NpuProbe", "load_findings", "parse_gpu", "throttled"]

When = Literal["before", "during", "after"]

#: How often a processor was slowed down because it was hot: Linux, Documentation/ABI, sysfs-devices-system-cpu.
THROTTLE_COUNTS = "/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"
#: Bits of ``clocks_throttle_reasons.active`` that mean a GPU was slowed down against its will: NVML API reference,
#: NvmlClocksThrottleReasons. A power cap (0x4) is not among them: a board at its limit works as it is sold, a T4 under
#: full load always is, and the published figures are of such boards.
SLOWDOWNS = {0x08: "hardware slowdown", 0x20: "thermal, by software", 0x40: "thermal, by hardware", 0x80: "power brake"}
GPU_FIELDS = ("clocks.sm", "temperature.gpu", "utilization.gpu", "clocks_throttle_reasons.active")


@dataclass(frozen=True)
class LoadSample:
    """
    One look at the machine; None where it does not tell.

    Parameters
    ----------
    when : {"before", "during", "after"}
        Relative to the timed pass.
    clock : float or None
        Of the device, in MHz.
    temperature : float or None
        Of the device, in degrees C.
    busy : float or None
        Percent of the device at work; of the processors since the last look, if they are the device.
    others : float or None
        Percent of all processors at work for processes that are not ours, since the last look.
    load_average : float or None
        Processes of the host that ran or wanted to, mean of a minute.
    throttled : str
        What slowed the device down, in words; empty if nothing did, or the platform does not tell.
    """

    when: When
    clock: float | None = None
    temperature: float | None = None
    busy: float | None = None
    others: float | None = None
    load_average: float | None = None
    throttled: str = ""


class HostProbe:
    """Looks at the processors of this host, which are the device or feed it."""

    def __init__(self) -> None:
        self._used, self._throttles = _processor_seconds(), _throttle_count()

    def __call__(self, when: When) -> LoadSample:
        """Look once; shares of time are those since the last look, or since this was made."""
        used, throttles = _processor_seconds(), _throttle_count()
        busy, ours, total = (after - before for after, before in zip(used, self._used, strict=True))
        slowed = throttles - self._throttles
        self._used, self._throttles = used, throttles
        return LoadSample(
            when,
            clock=_clock(),
            temperature=_temperature(),
            busy=_percent(busy, total),
            others=_percent(max(0.0, busy - ours), total),
            load_average=psutil.getloadavg()[0],
            throttled=f"{slowed} thermal slowdowns of the processor" if slowed > 0 else "",
        )


def _percent(part: float, total: float) -> float | None:
    # Two looks within one tick of the clock tell nothing.
    return round(min(100.0, 100 * part / total), 1) if total > 0 else None


def _processor_seconds() -> tuple[float, float, float]:
    """Return seconds of all processors at work, of our processes alone, and in all."""
    times = psutil.cpu_times()
    total = float(sum(times)) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    idle = times.idle + getattr(times, "iowait", 0.0)
    this, ours = psutil.Process(), 0.0
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):  # it may have ended
            spent = process.cpu_times()
            # What ended children used is told by their parent.
            ours += spent.user + spent.system + spent.children_user + spent.children_system
    return total - idle, ours, total


def _clock() -> float | None:
    with suppress(OSError, NotImplementedError, AttributeError):
        frequency = psutil.cpu_freq()
        return float(frequency.current) if frequency else None
    return None


def _temperature() -> float | None:
    with suppress(OSError, AttributeError):
        sensors = psutil.sensors_temperatures()
        found = [entry.current for name in ("coretemp", "k10temp", "cpu_thermal") for entry in sensors.get(name, ())]
        return max(found, default=None)
    return None


def _throttle_count() -> int:
    count = 0
    for path in Path("/").glob(THROTTLE_COUNTS[1:]):
        with suppress(OSError, ValueError):
            count += int(path.read_text(encoding="ascii"))
    return count


class GpuProbe:
    """
    Looks at an NVIDIA GPU through ``nvidia-smi``, and at the host.

    Parameters
    ----------
    uuid : str
        Which GPU.
    timeout : float
        Seconds ``nvidia-smi`` may take.
    """

    def __init__(self, uuid: str, *, timeout: float) -> None:
        self._uuid, self._timeout, self._host = uuid, timeout, HostProbe()

    def __call__(self, when: When) -> LoadSample:
        """Look once; a GPU that does not tell is no reason to end a pass."""
        return _of_device(self._host(when), parse_gpu(self._ask(), when))

    def _ask(self) -> str:
        tool = shutil.which("nvidia-smi") or "nvidia-smi"
        command = [tool, f"--id={self._uuid}", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=self._timeout, check=True)
            return done.stdout
        return ""


def parse_gpu(text: str, when: When) -> LoadSample:
    """
    Read one line of ``nvidia-smi --query-gpu``.

    Parameters
    ----------
    text : str
        Values of `GPU_FIELDS`, comma-separated; what is not a number is unknown.
    when : {"before", "during", "after"}
        Of the sample.

    Examples
    --------
    >>> parse_gpu("1590, 71, 98, 0x0000000000000024", "during").throttled
    'thermal, by software'
    """
    fields = [field.strip() for field in text.strip().split(",")]
    if len(fields) != len(GPU_FIELDS):
        return LoadSample(when)
    clock, temperature, busy = (_number(field) for field in fields[:3])
    bits = int(fields[3], 16) if fields[3].lower().startswith("0x") else 0
    slowed = ", ".join(name for bit, name in SLOWDOWNS.items() if bits & bit)
    return LoadSample(when, clock=clock, temperature=temperature, busy=busy, throttled=slowed)


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:
        return None


class NpuProbe:
    """
    Looks at an Ascend chip through ``npu-smi``, and at the host.

    The driver has no flag for throttling, and an idle chip lowers its clock too: one of a 310P is rated at 1080 MHz and
    idles at 960. So a chip counts as slowed down if, at work, it is slower than it was before the pass.

    Parameters
    ----------
    smi : NpuSmi
        Asked at every look.
    npu : Npu
        Which chip.
    """

    def __init__(self, smi: NpuSmi, npu: Npu) -> None:
        self._smi, self._npu, self._host = smi, npu, HostProbe()
        self._before: float | None = None

    def __call__(self, when: When) -> LoadSample:
        """Look once; a chip that does not tell is no reason to end a pass."""
        found = _of_device(self._host(when), self._look(when))
        if when == "before":
            self._before = found.clock
        slower = found.clock is not None and self._before is not None and found.clock < self._before
        if when == "during" and found.busy and slower:
            return replace(found, throttled=f"the clock fell from {self._before:g} to {found.clock:g} MHz")
        return found

    def _look(self, when: When) -> LoadSample:
        with suppress(SuiteError):
            for chip in self._smi.common(self._npu.npu_id):
                if chip.chip_id == self._npu.chip_id:
                    names = ("Aicore curFreq(MHZ)", "Temperature(C)", "Aicore Usage Rate(%)")
                    clock, temperature, busy = (chip.values.get(name) for name in names)
                    return LoadSample(when, clock=clock, temperature=temperature, busy=busy)
        return LoadSample(when)


def _of_device(host: LoadSample, device: LoadSample) -> LoadSample:
    """Tell of a device what it tells of itself, and of the host the rest."""
    return replace(device, others=host.others, load_average=host.load_average)


class LoadWatch:
    """
    Looks before, every `interval` seconds during, and after what happens in its context.

    Parameters
    ----------
    probe : callable
        Looks once; told when this is.
    interval : float
        Seconds.

    Attributes
    ----------
    samples : tuple of LoadSample
        So far, in order.
    """

    def __init__(self, probe: Callable[[When], LoadSample], *, interval: float) -> None:
        self._probe, self._interval, self._ended = probe, interval, threading.Event()
        self.samples: tuple[LoadSample, ...] = ()
        self._thread = threading.Thread(target=self._look_until_ended, name="load watch", daemon=True)

    def __enter__(self) -> Self:
        self._look("before")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self._look("after")

    def _look_until_ended(self) -> None:
        while not self._ended.wait(self._interval):
            self._look("during")

    def _look(self, when: When) -> None:
        self.samples = (*self.samples, self._probe(when))


def throttled(samples: Sequence[LoadSample]) -> str:
    """Say what slowed the device down during a pass or by its end; empty if nothing is known to have."""
    found = dict.fromkeys(sample.throttled for sample in samples if sample.throttled and sample.when != "before")
    return "; ".join(found)


def load_findings(samples: Sequence[LoadSample]) -> tuple[str, ...]:
    """
    Tell what was seen, in one line, and one more for throttling.

    Examples
    --------
    >>> load_findings([LoadSample("before", clock=1590.0), LoadSample("after", clock=1200.0, throttled="thermal")])
    ('machine: clock 1200 to 1590 MHz (before, after)', 'throttled: thermal')
    """
    told = [(sample.when, sample) for sample in samples]
    parts = [
        f"{label} {_spread(values)}{unit}"
        for label, unit, values in (
            ("clock", " MHz", [sample.clock for _, sample in told]),
            ("temperature", " C", [sample.temperature for _, sample in told]),
            ("others used", " % of the processors", [sample.others for when, sample in told if when != "before"]),
            ("load average", "", [sample.load_average for _, sample in told]),
        )
        if any(value is not None for value in values)
    ]
    seen = ", ".join(dict.fromkeys(when for when, _ in told))
    slowed = throttled(samples)
    machine = (f"machine: {'; '.join(parts)} ({seen})",) if parts else ()
    return (*machine, *((f"throttled: {slowed}",) if slowed else ()))


def _spread(values: Sequence[float | None]) -> str:
    known = [round(value, 2) for value in values if value is not None]
    low, high = min(known), max(known)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
