"""Raw heads kept from one pass, so that a fault that lies behind the network need not run it again."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.backends.base import Backend, TensorInfo
from support.backends.onnx_runtime import OnnxCpuBackend
from support.feed import Feed
from support.heads import head_shapes
from support.spec import Model
from support.stages.onnx_from_pth import output_names

__all__ = ["Alter", "KeptHeads", "ReplayBackend"]

Outputs = dict[str, NDArray[np.float32]]
#: Changes the outputs of a call, given the images in its slots (checksums of their tensors) and how many calls were
#: before it.
Alter = Callable[[Outputs, tuple[int, ...], int], Outputs]


class KeptHeads:
    """
    Raw heads of every image of a feed, found again by the bits of the network input.

    Parameters
    ----------
    folder : Path
        Where they are kept, 18.5 MB an image.
    model : Model
        The network.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        self._path, self.model = folder / "heads.f32", model
        self._rows: dict[int, int] = {}
        self.shapes = [shape[1:] for shape in head_shapes(model, 1)]
        self._sizes = [int(np.prod(shape)) for shape in self.shapes]

    def record(self, feed: Feed, network: Path) -> None:
        """Run an ONNX model over a feed and keep what it gives."""
        kept = np.memmap(self._path, np.float32, "w+", shape=(len(feed), sum(self._sizes)))
        with OnnxCpuBackend(network) as backend:
            for start in range(0, len(feed), backend.batch):
                rows = [min(row, len(feed) - 1) for row in range(start, start + backend.batch)]
                tensor = feed.tensors(rows)
                outputs = backend.infer(tensor)
                by_shape = {value.shape[1:]: value for value in outputs.values()}
                for slot, row in enumerate(rows):
                    kept[row] = np.concatenate([by_shape[shape][slot].ravel() for shape in self.shapes])
                    self._rows[checksum(tensor[slot])] = row
        self._heads = kept

    def of(self, keys: tuple[int, ...]) -> Outputs:
        """
        Give the outputs of a batch of images.

        Raises
        ------
        ValueError
            For an input that was not recorded: a fault before the network needs the network.
        """
        unknown = [key for key in keys if key not in self._rows]
        if unknown:
            raise ValueError("no heads are kept of this network input")
        rows = [self._heads[self._rows[key]] for key in keys]
        outputs, start = {}, 0
        for name, shape, size in zip(output_names(self.model), self.shapes, self._sizes, strict=True):
            outputs[name] = np.stack([row[start : start + size] for row in rows]).reshape(len(keys), *shape)
            start += size
        return outputs


class ReplayBackend(Backend):
    """
    A device that gives kept heads.

    Parameters
    ----------
    kept : KeptHeads
        What it gives.
    batch : int
        Images of a call.
    alter : callable, optional
        What is wrong with it.
    pace : callable, optional
        Seconds that a call takes, by its number, for devices that tell their own time.
    """

    timer, includes_copies = "wall time of the replay", True

    def __init__(
        self, kept: KeptHeads, batch: int, alter: Alter | None = None, pace: Callable[[int], float] | None = None
    ) -> None:
        self._kept, self._batch, self._alter, self._pace = kept, batch, alter, pace

    def _open(self) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
        size = self._kept.model.image_size
        outputs = tuple(
            TensorInfo(name, (self._batch, *shape), "float32")
            for name, shape in zip(output_names(self._kept.model), self._kept.shapes, strict=True)
        )
        return TensorInfo("x.1", (self._batch, 3, size, size), "float32"), outputs

    def _run(self, tensor: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        keys = tuple(checksum(slot) for slot in tensor)
        outputs = self._kept.of(keys)
        return outputs if self._alter is None else self._alter(outputs, keys, len(self.samples))

    def _seconds(self, wall: float) -> float:
        return wall if self._pace is None else self._pace(len(self.samples))

    def _close(self) -> None:
        pass


def checksum(tensor: NDArray[np.float32]) -> int:
    """CRC-32 of the bits of one network input."""
    return zlib.crc32(np.ascontiguousarray(tensor).data)
