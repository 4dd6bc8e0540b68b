"""What the candidate runs on: the CPU, a GPU, or one or more NPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.artifacts import Artifact
from support.ascend.host import AscendHost
from support.ascend.runtime import AscendRuntime
from support.backends.base import Backend
from support.candidate import open_on_chip
from support.capabilities import CPU, Capabilities, Chip
from support.errors import ContractViolationError
from support.load import GpuProbe, HostProbe, LoadWatch
from support.memory import Memory, remembered
from support.options import RunOptions
from support.spec import AcceptanceSpec

__all__ = ["Devices"]

#: Seconds between two looks at processors or a GPU while a pass is timed.
LOOK_EVERY = 2.0


class Devices:
    """
    The devices of one run.

    Parameters
    ----------
    options : RunOptions
        Which were asked for.
    spec : AcceptanceSpec
        Time limits and options of the compiler.
    capabilities : Capabilities
        Which there are.
    host : AscendHost
        Where the tools for NPUs are.
    session_folder : Path
        Shared by the workers of a session.
    """

    def __init__(
        self,
        options: RunOptions,
        spec: AcceptanceSpec,
        capabilities: Capabilities,
        host: AscendHost,
        session_folder: Path,
    ) -> None:
        self.memory: Memory = {}
        self._options, self._spec, self._capabilities = options, spec, capabilities
        self._host, self._session_folder = host, session_folder

    @property
    @remembered
    def chip(self) -> Chip:
        """The device under test; that of result files was not seen."""
        name = self._options.chip_name
        if self._options.results:
            return Chip(name=name, device_id=0, model=f"unseen {name}", serial=f"unseen {name}", driver="")
        return self._capabilities.chip(name, self._options.device_ids)

    @property
    @remembered
    def ascend(self) -> AscendRuntime:
        """The NPUs under test and their tools."""
        npus = self._capabilities.chosen_npus(self._options.chip_name, self._options.device_ids)
        return AscendRuntime(self._host, npus, self._capabilities.npus, self._options, self._spec, self._session_folder)

    @property
    def several(self) -> bool:
        """Whether passes are shared, so that their time is no device's own."""
        return self._options.on_npu and not self._options.results and len(self.ascend.npus) > 1

    def watch(self) -> LoadWatch:
        """Return what looks after clocks, temperature and other load while a pass is timed."""
        if self._options.on_npu:
            return self.ascend.load_watch()
        if self._options.chip_name == CPU:
            return LoadWatch(HostProbe(), interval=LOOK_EVERY)
        probe = GpuProbe(self.chip.serial, timeout=self._spec.timeouts.probe)
        return LoadWatch(probe, interval=LOOK_EVERY)

    @contextmanager
    def opened(self, model: Artifact, batch: int, *, every: bool = False) -> Iterator[Sequence[Backend]]:
        """
        Open a model on the device under test, or on every device of the run, with nobody else on it.

        Raises
        ------
        ContractViolationError
            If the model is for another batch size than its name says.
        """
        with ExitStack() as stack:
            backends = [stack.enter_context(backend) for backend in self._backends(stack, model, every=every)]
            for backend in backends:
                _require_batch(backend, batch)
            yield backends

    def _backends(self, stack: ExitStack, model: Artifact, *, every: bool) -> list[Backend]:
        if not self._options.on_npu:
            return [open_on_chip(model, self.chip)]
        npus = self.ascend.npus if every else self.ascend.npus[:1]
        stack.enter_context(self.ascend.in_use(npus))
        return [self.ascend.backend(model, npu) for npu in npus]


def _require_batch(backend: Backend, batch: int) -> None:
    if backend.batch != batch:
        raise ContractViolationError(
            f"the model given for batch {batch} takes batch {backend.batch}",
            required=f"an input of {batch} images",
            remedy="a model under the wrong name: compare its file name with its input shape",
        )
