"""The NPUs of a run: how models are compiled for them, opened on them, and how they are kept to ourselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock

from support.artifacts import Artifact, ArtifactStore
from support.ascend.acl_python import AclPython, find_acl_python
from support.ascend.bench_cli import BenchCli, find_bench_cli
from support.ascend.busy import note_busy
from support.ascend.devices import Npu
from support.ascend.file_route import FileRoute
from support.ascend.host import AscendHost
from support.ascend.idle import Watch, require_idle
from support.ascend.npu_smi import NpuSmi
from support.ascend.om_facts import OmFacts, read_om
from support.backends.ascend import AclBackend
from support.errors import DeviceBusyError, ToolError
from support.load import LoadWatch, NpuProbe
from support.memory import Memory, remembered
from support.options import RunOptions
from support.progress import Progress
from support.spec import AcceptanceSpec
from support.stages.om_from_onnx import om_from_onnx, om_path

__all__ = ["AscendRuntime"]

#: Seconds between two looks at a chip. npu-smi disturbs itself when asked more often than once a second.
LOOK_EVERY = 1.0
#: Seconds between two looks while a pass runs.
WATCH_EVERY = 5.0
#: A simulated npu-smi disturbs nothing.
SIMULATED_FASTER = 5


class AscendRuntime:
    """
    What a run does with its NPUs.

    Parameters
    ----------
    host : AscendHost
        Where the tools are.
    npus : sequence of Npu
        The devices of the run; the first is the one that is timed.
    others : sequence of Npu
        All devices of the host, for those that share a card.
    options : RunOptions
        Interpreter, scratch folder, and whether a busy device will do.
    spec : AcceptanceSpec
        Options of atc, and time limits.
    session_folder : Path
        Shared by the workers of a session.
    """

    def __init__(
        self,
        host: AscendHost,
        npus: Sequence[Npu],
        others: Sequence[Npu],
        options: RunOptions,
        spec: AcceptanceSpec,
        session_folder: Path,
    ) -> None:
        self.memory: Memory = {}
        self.host, self.npus = host, tuple(npus)
        self._others, self._options, self._spec, self._session = tuple(others), options, spec, session_folder
        self._smi = NpuSmi(host, timeout=spec.timeouts.probe)

    @property
    @remembered
    def python(self) -> AclPython:
        """The interpreter in which aclruntime can be imported."""
        return find_acl_python(self.host, self._options.acl_python, timeout=self._spec.timeouts.load)

    @property
    @remembered
    def bench(self) -> BenchCli:
        """The command-line tool that runs a model over files."""
        return find_bench_cli(self.host, self.python, self._options.ais_infer, timeout=self._spec.timeouts.load)

    def compile(self, store: ArtifactStore, model: Artifact, batch: int, progress: Progress) -> Artifact:
        """Compile an ONNX model for the chip of the run."""
        spec, soc_version = self._spec, self.npus[0].soc_version
        return om_from_onnx(store, model, self.host, soc_version, spec.atc, batch, spec.timeouts.compile, progress)

    def facts(self, om: Artifact) -> OmFacts | None:
        """Return what atc tells about a compiled model; None on a host without atc."""
        try:
            self.host.tool("atc")
        except ToolError:
            return None
        return read_om(self.host, om_path(om), timeout=self._spec.timeouts.compile)

    def backend(self, om: Artifact, npu: Npu) -> AclBackend:
        """Return the runtime of a compiled model on one device; the device is touched when it is entered."""
        return AclBackend(
            om_path(om),
            host=self.host,
            python=self.python,
            device_id=npu.device_id,
            scratch=self._options.scratch,
            load_seconds=self._spec.timeouts.load,
            call_seconds=self._spec.timeouts.infer_call,
        )

    def file_route(self, om: Artifact, npu: Npu, batch: int) -> FileRoute:
        """Return the way to run a compiled model over files."""
        timeout = self._spec.timeouts.compile
        return FileRoute(self.host, self.bench, om_path(om), device_id=npu.device_id, batch=batch, timeout=timeout)

    @contextmanager
    def in_use(self, npus: Sequence[Npu]) -> Iterator[None]:
        """
        Have devices to ourselves: idle before, nobody else on them until the end.

        Chips of the same card that this run does not use must be idle too, since they share its power and its link.

        Raises
        ------
        DeviceBusyError
            If somebody else uses one of them, unless busy devices were allowed; then it is noted for the verdict.
        WrongDeviceError
            If our own process shows up on another chip.
        """
        with FileLock(self._session / "device.lock", timeout=self._spec.timeouts.lock):
            for npu in (*npus, *self._neighbours(npus)):
                with self._noting_busy():
                    require_idle(self._smi, npu, interval=self._seconds(LOOK_EVERY))
            watch = Watch(self._smi, npus, _own_processes, interval=self._seconds(WATCH_EVERY))
            with self._noting_busy(), watch:
                yield

    def load_watch(self) -> LoadWatch:
        """Return what looks after clock, temperature and other load of the device that is timed."""
        return LoadWatch(NpuProbe(self._smi, self.npus[0]), interval=self._seconds(WATCH_EVERY))

    def _neighbours(self, npus: Sequence[Npu]) -> list[Npu]:
        cards, used = {npu.npu_id for npu in npus}, {npu.device_id for npu in self.npus}
        return [npu for npu in self._others if npu.npu_id in cards and npu.device_id not in used]

    def _seconds(self, interval: float) -> float:
        return interval / SIMULATED_FASTER if self.host.simulation else interval

    @contextmanager
    def _noting_busy(self) -> Iterator[None]:
        try:
            yield
        except DeviceBusyError as error:
            if not self._options.allow_busy:
                raise
            note_busy(self._session, error.found)


def _own_processes() -> frozenset[int]:
    this = psutil.Process()
    return frozenset((this.pid, *(child.pid for child in this.children(recursive=True))))
