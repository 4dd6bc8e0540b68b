"""Where the models under test come from: built stage by stage from the checkpoint, or given by the user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from support.artifacts import Artifact, ArtifactStore, file_sha256
from support.backends.base import Backend
from support.backends.onnx_runtime import CudaBackend, OnnxCpuBackend
from support.capabilities import CPU, Chip
from support.checkpoint import Checkpoint
from support.deadline import deadline
from support.errors import NoDataError
from support.memory import Memory, remembered
from support.pads import pad_fills
from support.progress import Progress
from support.spec import AcceptanceSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["BuiltModels", "Stage", "given_model", "open_on_chip", "pads_edited"]

Stage = Literal["raw onnx", "simplified onnx", "modified onnx", "raw onnx, Pads edited"]


class BuiltModels:
    """
    The stages from the checkpoint to the model that is deployed, one static graph per batch size.

    Parameters
    ----------
    store : ArtifactStore
        Keeps every stage's product.
    checkpoint : callable
        Gives the checkpoint when the first stage needs it.
    spec : AcceptanceSpec
        Network and graph.
    progress : Progress
        Told of every build.
    """

    def __init__(
        self, store: ArtifactStore, checkpoint: Callable[[], Checkpoint], spec: AcceptanceSpec, progress: Progress
    ) -> None:
        self.memory: Memory = {}
        self._store, self._checkpoint, self._spec, self._progress = store, checkpoint, spec, progress

    @remembered
    def raw(self, batch: int) -> Artifact:
        """ONNX as exported."""
        from support.stages.onnx_from_pth import onnx_from_pth

        spec = self._spec
        with deadline(spec.timeouts.export, "the export to ONNX"):
            return onnx_from_pth(self._store, self._checkpoint(), spec.model, spec.graph, batch, self._progress)

    @remembered
    def simplified(self, batch: int) -> Artifact:
        """ONNX as simplified."""
        from support.stages.simplified_onnx import simplified_onnx

        return simplified_onnx(self._store, self.raw(batch), self._spec.timeouts.export, batch, self._progress)

    @remembered
    def modified(self, batch: int) -> Artifact:
        """ONNX as deployed."""
        return self._modified(self.simplified(batch), batch)

    @remembered
    def raw_edited(self, batch: int) -> Artifact:
        """Edit the Pads of the graph as exported, which keeps them; shows what the edit costs on the whole network."""
        return self._modified(self.raw(batch), batch)

    def pad_example(self) -> tuple[Artifact, Artifact]:
        """Return the committed graph that keeps its -inf Pads, and what the modify stage makes of it."""
        from support.stages.pad_example import pad_example

        example = pad_example()
        return example, self._modified(example, batch=1)

    def _modified(self, source: Artifact, batch: int) -> Artifact:
        from support.stages.modified_onnx import modified_onnx

        return modified_onnx(self._store, source, batch, self._progress)

    def stage(self, name: Stage, batch: int) -> Artifact:
        """Return the product of a stage by its name."""
        makers = {
            "raw onnx": self.raw,
            "simplified onnx": self.simplified,
            "modified onnx": self.modified,
            "raw onnx, Pads edited": self.raw_edited,
        }
        return makers[name](batch)


def given_model(template: str, batch: int, kind: Literal["onnx", "om"] = "onnx") -> Artifact:
    """
    Take a prebuilt model.

    Parameters
    ----------
    template : str
        Path in which ``{batch}`` stands for the batch size.
    batch : int
        The batch size.
    kind : {"onnx", "om"}
        What it is; also the name of the option that gave it.

    Raises
    ------
    NoDataError
        If there is no such file.
    """
    path = Path(template.replace("{batch}", str(batch)))
    if not path.is_file():
        raise NoDataError(f"there is no model {path}", remedy=f"put it there, or correct --{kind}={template}")
    return Artifact(kind, path, file_sha256(path), {"given": template}, ())


def open_on_chip(model: Artifact, chip: Chip) -> Backend:
    """Choose the runtime of a chip for a model; the device is touched when the backend is entered."""
    if chip.name == CPU:
        return OnnxCpuBackend(model.path)
    return CudaBackend(model.path, chip.device_id)


def pads_edited(model: onnx.ModelProto) -> bool:
    """Whether a Pad that fills with 0 feeds a max-pooling, where only -inf leaves every value as it was."""
    pooled = {name for node in model.graph.node if node.op_type == "MaxPool" for name in node.input}
    fills = [pad for pad in pad_fills(model) if pad.node.output[0] in pooled]
    return any(pad.value is not None and not pad.is_negative_infinite for pad in fills)
