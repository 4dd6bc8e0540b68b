"""The checkpoint run by PyTorch itself: the reference every other form is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from support.backends.base import Backend, TensorInfo, runtime_failure
from support.heads import head_shapes
from support.spec import Model
from support.stages.onnx_from_pth import output_names

if TYPE_CHECKING:
    import torch

__all__ = ["TorchBackend"]


class TorchBackend(Backend):
    """
    PyTorch on the CPU, in float32 and evaluation mode.

    Parameters
    ----------
    network : torch.nn.Module
        Takes (B, 3, S, S) and returns the class heads and the box heads, each from fine to coarse level.
    model : Model
        The spec's description of the network.
    batch : int
        Images in one call.
    """

    timer = "wall time of the forward pass"
    includes_copies = True

    def __init__(self, network: torch.nn.Module, model: Model, batch: int) -> None:
        self._network: Any = network
        self._model = model
        self._batch = batch

    def _open(self) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
        size = self._model.image_size
        named = zip(output_names(self._model), head_shapes(self._model, self._batch), strict=True)
        outputs = [TensorInfo(name, shape, "float32") for name, shape in named]
        return TensorInfo("x", (self._batch, 3, size, size), "float32"), tuple(outputs)

    def _run(self, tensor: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        import torch

        try:
            with torch.inference_mode():
                classes, boxes = self._network(torch.from_numpy(tensor))
        except RuntimeError as error:
            raise runtime_failure("PyTorch", error) from error
        names = [info.name for info in self.outputs]
        return {name: head.numpy() for name, head in zip(names, (*classes, *boxes), strict=True)}

    def _close(self) -> None:
        self._network = None
