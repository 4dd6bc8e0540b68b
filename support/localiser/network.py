"""The network as a sequence of blocks, and what each of them gives on golden images, from PyTorch itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from support.errors import ToolError

if TYPE_CHECKING:
    import torch

__all__ = ["IMAGE", "Anchor", "Block", "Network", "observed"]

#: Stands for the input of the network among the blocks a block reads from.
IMAGE = -1


@dataclass(frozen=True)
class Anchor:
    """
    An operator that every form of the network keeps, by which a graph without names can be read.

    `kind` is its ONNX type, `shape` that of the weight of a convolution or the kernel of a pooling, and `block` the
    place of its block.
    """

    kind: str
    shape: tuple[int, ...]
    block: int

    def __str__(self) -> str:
        what = "convolution with weights" if self.kind == "Conv" else "max-pooling with kernel"
        return f"{what} {list(self.shape)}"


@dataclass(frozen=True, eq=False)
class Block:
    """
    A part of the network with one output.

    Parameters
    ----------
    title : str
        What it is, for a reader.
    reads : frozenset of int
        Places of the blocks whose outputs it takes; `IMAGE` is the input of the network.
    output : ndarray of float32, shape (N, C, H, W)
        What it gives on the golden images.
    reader : int or None
        Place of the first anchor that takes the output as it is; None if none does, and then the output is that of the
        block's own last anchor.
    last : int
        Place of the block's own last anchor.
    """

    title: str
    reads: frozenset[int]
    output: NDArray[np.float32]
    reader: int | None
    last: int


@dataclass(frozen=True, eq=False)
class Network:
    """Blocks and anchors in the order in which they are computed, and the golden images (N, 3, S, S)."""

    blocks: tuple[Block, ...]
    anchors: tuple[Anchor, ...]
    images: NDArray[np.float32]


def observed(network: torch.nn.Module, images: NDArray[np.float32]) -> Network:
    """
    Run a network and keep what every block gives.

    Blocks are the stem, the blocks of the backbone, the coarser inputs of the BiFPN, its nodes, and the repeats and the
    prediction of each head at each level.

    Parameters
    ----------
    network : torch.nn.Module
        An effdet network in inference mode; it is left as it is.
    images : ndarray of float32, shape (N, 3, S, S)
        Golden inputs.

    Raises
    ------
    ToolError
        If the backbone is not one of numbered stages of blocks.
    """
    import torch

    observer = _Observer(dict(_ends(network)))
    modules = list(network.modules())
    hooks = [module.register_forward_pre_hook(observer.enter) for module in modules]
    hooks += [module.register_forward_hook(observer.leave) for module in modules]
    try:
        with torch.inference_mode():
            observer.run(network, torch.from_numpy(images))
    finally:
        for hook in hooks:
            hook.remove()
    return Network(observer.blocks(), tuple(observer.anchors), images)


def _ends(network: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yield the modules whose outputs are those of blocks, each with the titles its calls take in turn."""
    if not hasattr(network.backbone, "blocks"):
        raise ToolError(f"the backbone {type(network.backbone).__name__} has no blocks", required="one of EfficientNet")
    yield network.backbone.bn1, ("stem",)
    for i, stage in enumerate(network.backbone.blocks):
        yield from ((block, (f"backbone block {i}.{j}",)) for j, block in enumerate(stage))
    yield from ((resample, ("BiFPN input P{level}",)) for resample in network.fpn.resample.values())
    for i, cell in enumerate(network.fpn.cell):
        yield from ((node, (f"BiFPN cell {i} node {j} (P{{level}})",)) for j, node in enumerate(cell.fnode))
    for kind, head in (("class", network.class_net), ("box", network.box_net)):
        # One set of convolutions serves all levels, one level after the other.
        yield head.act, tuple(f"{kind} head P{{level}} repeat {i}" for i in range(len(head.conv_rep)))
        yield head.predict, (f"{kind} head P{{level}} prediction",)


class _Observer:
    """
    Notes what a network calls: hooks tell it of every module that is entered and left.

    Tensors are known by identity. They are kept until the end, so that no other tensor takes the identity of one.
    """

    def __init__(self, ends: Mapping[Any, tuple[str, ...]]) -> None:
        self.anchors: list[Anchor] = []
        self._ends, self._calls = ends, Counter[Any]()
        self._places: dict[int, int] = {}
        self._readers: dict[int, int] = {}
        self._reads: set[int] = set()
        self._kept: list[Any] = []
        self._closed: list[tuple[str, frozenset[int], NDArray[np.float32], int]] = []

    def run(self, network: Any, images: Any) -> None:
        """Run the network on its input."""
        self._side = images.shape[-1]
        self._keep(images, IMAGE)
        network(images)

    def enter(self, module: Any, inputs: tuple[Any, ...]) -> None:
        """Note what the current block reads, and which anchor reads it."""
        for tensor in inputs:
            if id(tensor) in self._places:
                self._reads.add(self._places[id(tensor)])
                if _anchor(module):
                    self._readers.setdefault(self._places[id(tensor)], len(self.anchors))

    def leave(self, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Note an anchor; end the current block if its last module is left."""
        if found := _anchor(module):
            self.anchors.append(Anchor(*found, block=len(self._closed)))
        if module in self._ends:
            titles = self._ends[module]
            title = titles[self._calls[module] % len(titles)].format(
                level=(self._side // output.shape[-1]).bit_length() - 1
            )
            self._calls[module] += 1
            self._keep(output, len(self._closed))
            # A copy: activations work in place.
            self._closed.append((title, frozenset(self._reads), output.numpy().copy(), len(self.anchors) - 1))
            self._reads = set()

    def _keep(self, tensor: Any, place: int) -> None:
        self._places[id(tensor)] = place
        self._kept.append(tensor)

    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks, each with the anchor that reads it."""
        return tuple(
            Block(title, reads, output, self._readers.get(place), last)
            for place, (title, reads, output, last) in enumerate(self._closed)
        )


def _anchor(module: Any) -> tuple[str, tuple[int, ...]] | None:
    import torch

    if isinstance(module, torch.nn.Conv2d):
        return "Conv", tuple(module.weight.shape)
    if isinstance(module, torch.nn.MaxPool2d):
        size = module.kernel_size
        return "MaxPool", (size, size) if isinstance(size, int) else tuple(size)
    return None
