"""What this machine can do: the one table that feeds skip reasons, the session header and the report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TypeVar

import psutil
from pydantic import BaseModel, ConfigDict

from support.ascend.devices import Npu, choose, visible_npus
from support.ascend.host import AscendHost, real_host
from support.ascend.npu_smi import NpuSmi
from support.errors import NoDeviceError, SuiteError, SuiteTimeoutError, ToolError, UsageError, WrongDeviceError

__all__ = ["CPU", "Capabilities", "Chip", "Gpu", "parse_gpus", "probe", "visible_gpus"]

CPU = "cpu"
#: Distributions whose versions decide what a run computes.
PACKAGES = (
    "effdet",
    "hotcoco",
    "numba",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxsim",
    "pillow",
    "pycocotools",
    "pytest",
    "pytest-benchmark",
    "timm",
    "torch",
    "torchvision",
)
GPU_FIELDS = ("index", "name", "uuid", "driver_version", "memory.total", "utilization.gpu")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(_Record):
    """One GPU as ``nvidia-smi`` lists it; memory in MiB, utilisation in percent, None where it says ``[N/A]``."""

    index: int
    name: str
    uuid: str
    driver: str
    memory: int | None
    utilisation: int | None


class Chip(_Record):
    """
    The device under test: its name as asked for, its id, and what identifies the piece of hardware.

    `simulation` tells what is simulated; empty on hardware.
    """

    name: str
    device_id: int
    model: str
    serial: str
    driver: str
    firmware: str = ""
    simulation: str = ""


class Capabilities(_Record):
    """
    Everything probed, once a session, in the controlling process; workers receive it as JSON.

    `gpu_problem` and `npu_problem` tell why `gpus` and `npus` are empty, `npu_remedy` what to do; `npus_unproven` that
    NPUs are here whose ids could not be told from each other.
    """

    host: str
    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    packages: Mapping[str, str]
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    npus: tuple[Npu, ...] = ()
    npu_problem: str = ""
    npu_remedy: str = ""
    npus_unproven: bool = False
    simulation: str = ""

    def chip(self, name: str, device_ids: tuple[int, ...] | None = None) -> Chip:
        """
        Find the device a run is to be judged on.

        Parameters
        ----------
        name : str
            ``cpu``, or the name of a chip such as ``T4`` or ``310P3``.
        device_ids : tuple of int, optional
            Positions among the visible devices of its kind, the first of which is judged; by default the first GPU, or
            the first healthy NPU of that name.

        Raises
        ------
        NoDeviceError
            If there is no such device.
        WrongDeviceError
            If the device with this id is another model.
        """
        if name == CPU:
            return Chip(name=CPU, device_id=0, model=self.cpu, serial=self.host, driver="")
        if name.startswith("310"):
            return self._npu(self.chosen_npus(name, device_ids)[0], name)
        return self._gpu(name, device_ids[0] if device_ids else 0)

    def chosen_npus(self, name: str, device_ids: tuple[int, ...] | None) -> tuple[Npu, ...]:
        """
        Find the NPUs a run may use.

        Raises
        ------
        NoDeviceError
            If there is none of this name, or if one is not healthy.
        WrongDeviceError
            If the device with one of the ids is another chip.
        """
        if not self.npus:
            kind = WrongDeviceError if self.npus_unproven else NoDeviceError
            raise kind(
                f"no {name} on this host: {self.npu_problem}",
                required=f"an Ascend {name} that npu-smi lists",
                remedy=self.npu_remedy or "run on the host that has it, or use --chip=cpu",
            )
        return choose(self.npus, name, device_ids)

    def _npu(self, npu: Npu, name: str) -> Chip:
        return Chip(
            name=name,
            device_id=npu.device_id,
            model=f"Ascend {npu.name}",
            serial=npu.identity,
            driver=npu.driver,
            firmware=npu.firmware,
            simulation=self.simulation,
        )

    def _gpu(self, name: str, device_id: int) -> Chip:
        if not self.gpus:
            raise NoDeviceError(
                f"no {name} on this host: {self.gpu_problem}",
                required=f"an NVIDIA {name} that nvidia-smi lists",
                remedy="run on the host that has it, or use --chip=cpu",
            )
        if not 0 <= device_id < len(self.gpus):
            raise NoDeviceError(f"no GPU {device_id}: {self._names()}", remedy="give --device-id one of these")
        gpu = self.gpus[device_id]
        # A name is a list of words: "T4" is not "T400" and not "T4G".
        if name not in gpu.name.split():
            raise WrongDeviceError(
                f"GPU {device_id} is a {gpu.name}, not a {name}",
                required=f"a device whose name has the word {name}",
                remedy=f"--device-id=N with one of: {self._names()}",
            )
        return Chip(name=name, device_id=device_id, model=gpu.name, serial=gpu.uuid, driver=gpu.driver)

    def _names(self) -> str:
        return ", ".join(f"{place} {gpu.name}" for place, gpu in enumerate(self.gpus))

    def require_package(self, name: str, extra: str) -> str:
        """
        Version of an installed distribution.

        Raises
        ------
        ToolError
            If it is not installed; the remedy names the extra that brings it.
        """
        if name not in self.packages:
            raise ToolError(f"{name} is not installed", remedy=f"pip install '.[{extra}]' in the checkout")
        return self.packages[name]

    @property
    def header(self) -> tuple[str, ...]:
        """Lines for the head of a session."""
        versions = " ".join(f"{name} {version}" for name, version in self.packages.items())
        gpus = ", ".join(gpu.name for gpu in self.gpus) or f"none ({self.gpu_problem})"
        npus = ", ".join(_described(npu) for npu in self.npus) or f"none ({self.npu_problem})"
        return (
            f"host: {self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self.system}, Python {self.python}",
            f"packages: {versions}",
            f"gpus: {gpus}",
            f"npus: {npus}{f' ({self.simulation})' if self.simulation else ''}",
        )


def _described(npu: Npu) -> str:
    return f"{npu.device_id} {npu.name} ({npu.health}, driver {npu.driver}, firmware {npu.firmware}, {npu.identity})"


def probe(*, timeout: float, host: AscendHost | None = None) -> Capabilities:
    """
    Look at the machine.

    Imports no model runtime; versions come from package metadata.

    Parameters
    ----------
    timeout : float
        Seconds each external tool may take.
    host : AscendHost, optional
        Where the tools for NPUs are; this host by default.
    """
    host = host or real_host()
    gpus, gpu_error = _found(lambda: visible_gpus(_query_gpus(timeout), os.environ.get("CUDA_VISIBLE_DEVICES")))
    npus, npu_error = _found(
        lambda: visible_npus(NpuSmi(host, timeout=timeout), host.env.get("ASCEND_RT_VISIBLE_DEVICES"))
    )
    return Capabilities(
        host=platform.node(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=psutil.virtual_memory().total / 2**30,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        gpus=gpus,
        gpu_problem="" if gpus else _why(gpu_error, "nvidia-smi lists no GPU that CUDA_VISIBLE_DEVICES admits"),
        npus=npus,
        npu_problem="" if npus else _why(npu_error, "npu-smi lists no NPU that ASCEND_RT_VISIBLE_DEVICES admits"),
        npu_remedy="" if npu_error is None else npu_error.remedy,
        npus_unproven=isinstance(npu_error, WrongDeviceError),
        simulation=host.simulation,
    )


T = TypeVar("T")


def _found(query: Callable[[], tuple[T, ...]]) -> tuple[tuple[T, ...], SuiteError | None]:
    """Devices, or what keeps them from being found."""
    try:
        return query(), None
    except SuiteError as error:
        return (), error


def _why(error: SuiteError | None, otherwise: str) -> str:
    return otherwise if error is None else error.found


def _versions() -> dict[str, str]:
    found = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a file on a disk
            for line in file:
                if line.startswith(("model name", "Model", "Hardware")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _query_gpus(timeout: float) -> tuple[Gpu, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise NoDeviceError("nvidia-smi is not on PATH")
    command = [tool, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise SuiteTimeoutError(f"nvidia-smi gave no answer in {timeout:g} s", remedy="check the driver") from None
    except OSError as error:
        raise ToolError(f"nvidia-smi cannot be started: {error}") from error
    if done.returncode != 0:
        raise ToolError(f"nvidia-smi ended with {done.returncode}: {(done.stdout + done.stderr).strip()[:300]}")
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """
    Read the CSV of ``nvidia-smi --query-gpu``.

    Raises
    ------
    ToolError
        If a line has not the fields asked for.

    Examples
    --------
    >>> parse_gpus("0, Tesla T4, GPU-1a2b, 535.104.05, 15360, [N/A]").__getitem__(0).name
    'Tesla T4'
    """
    gpus = []
    for line in text.strip().splitlines():
        fields = [field.strip() for field in line.split(",")]
        try:
            index, name, uuid, driver, memory, load = fields
            gpus.append(
                Gpu(
                    index=int(index),
                    name=name,
                    uuid=uuid,
                    driver=driver,
                    memory=_number(memory),
                    utilisation=_number(load),
                )
            )
        except ValueError:
            raise ToolError(f"nvidia-smi printed {line!r}", required=f"fields {', '.join(GPU_FIELDS)}") from None
    return tuple(gpus)


def _number(field: str) -> int | None:
    return None if field.startswith("[") else int(field)


def visible_gpus(gpus: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """
    GPUs in the order in which CUDA numbers them for this process.

    Parameters
    ----------
    gpus : sequence of Gpu
        All GPUs in PCI order, the order the CUDA backend asks for.
    visible : str or None
        ``CUDA_VISIBLE_DEVICES``: indices or UUID prefixes; as CUDA does, everything after an entry that matches
        nothing is invisible.

    Raises
    ------
    UsageError
        If an entry names a partition (MIG), which cannot be identified with a chip.
    """
    if visible is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("MIG"):
            raise UsageError(f"CUDA_VISIBLE_DEVICES={visible}: a MIG partition is not the whole chip")
        match = [
            g for g in gpus if entry and (str(g.index) == entry or (not entry.isdecimal() and g.uuid.startswith(entry)))
        ]
        if len(match) != 1:
            break
        found.append(match[0])
    return tuple(found)
