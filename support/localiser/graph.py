"""The blocks of a network in an ONNX graph, whatever its operators and tensors are called."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from support.errors import ContractViolationError
from support.graph_contract import constants
from support.localiser.network import IMAGE, Anchor, Block, Network
from support.onnx_files import input_shapes
from support.pads import pad_fills

if TYPE_CHECKING:
    import onnx

__all__ = ["boundaries", "cut_at", "exposing", "of_one_image", "sources", "undo_pad_edit"]

GOLDEN = "golden:"
KINDS = ("Conv", "MaxPool")


def boundaries(model: onnx.ModelProto, network: Network) -> tuple[str, ...]:
    """
    Find the output of every block by the place of its convolutions and poolings.

    Exporters write operators in the order in which they are called, and simplifiers keep it, so the k-th of the graph
    is the k-th of the network. Names are not used: they depend on the exporter.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph.
    network : Network
        What it should be.

    Returns
    -------
    names : tuple of str
        Name of the tensor each block gives.

    Raises
    ------
    ContractViolationError
        Naming the first operator that is not the network's, and its block.
    """
    graph = _Graph(model)
    _require_same_anchors(graph.anchors, network)
    return tuple(graph.output(block) for block in network.blocks)


def _require_same_anchors(found: Sequence[tuple[str, tuple[int, ...]]], network: Network) -> None:
    wanted: list[Anchor | None] = [*network.anchors]
    for place, (ours, theirs) in enumerate(itertools.zip_longest(wanted, found)):
        here = None if theirs is None else Anchor(theirs[0], theirs[1], IMAGE)
        if ours is None:
            raise ContractViolationError(f"the graph goes on after the network ends: {here}", required="nothing more")
        if here is None or (here.kind, here.shape) != (ours.kind, ours.shape):
            raise ContractViolationError(
                f"the graph departs from the network in {network.blocks[ours.block].title}: "
                f"{here or 'nothing'} at place {place}",
                required=str(ours),
            )


class _Graph:
    """An ONNX graph seen as a sequence of anchors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._constants = constants(model)
        self.nodes = [node for node in model.graph.node if node.op_type in KINDS]

    @property
    def anchors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Kind and shape of every anchor in order; an unknown weight has no shape."""
        return [(node.op_type, tuple(self._shape(node))) for node in self.nodes]

    def _shape(self, node: onnx.NodeProto) -> Sequence[int]:
        if node.op_type == "MaxPool":
            return next((item.ints for item in node.attribute if item.name == "kernel_shape"), ())
        name = node.input[1]
        while name in self._producers and self._producers[name].op_type == "Identity":
            name = self._producers[name].input[0]
        return self._constants[name].dims if name in self._constants else ()

    def output(self, block: Block) -> str:
        """Name of the tensor a block gives: what its reader takes, unless that comes from elsewhere."""
        own = self.nodes[block.last]
        if block.reader is not None:
            taken = self._before_padding(self.nodes[block.reader].input[0])
            if own.output[0] in self._nearest_anchors(taken):
                return taken
        return self._after_norm(own.output[0])

    def _before_padding(self, name: str) -> str:
        while name in self._producers and self._producers[name].op_type == "Pad":
            name = self._producers[name].input[0]
        return name

    def _after_norm(self, name: str) -> str:
        readers = self._readers.get(name, [])
        norm = len(readers) == 1 and readers[0].op_type == "BatchNormalization"
        return str(readers[0].output[0]) if norm else name

    def _nearest_anchors(self, name: str) -> set[str]:
        """Name the outputs of the anchors from which a tensor is computed by other operators alone."""
        found, pending, seen = set[str](), [name], set[str]()
        while pending:
            here = pending.pop()
            if here in seen or here not in self._producers:
                continue
            seen.add(here)
            if self._producers[here].op_type in KINDS:
                found.add(here)
            else:
                pending += self._producers[here].input
        return found


def sources(model: onnx.ModelProto, names: Sequence[str]) -> tuple[frozenset[int], ...]:
    """Places of the blocks whose outputs each block reads in the graph; `IMAGE` is the input of the graph."""
    producers = {name: node for node in model.graph.node for name in node.output}
    places = {name: place for place, name in enumerate(names)} | dict.fromkeys(input_shapes(model), IMAGE)
    return tuple(frozenset(_behind(name, producers, places)) for name in names)


def _behind(name: str, producers: dict[str, onnx.NodeProto], places: dict[str, int]) -> Iterator[int]:
    pending, seen = list(producers[name].input), set[str]()
    while pending:
        here = pending.pop()
        if here in places:
            yield places[here]
        elif here in producers and here not in seen:
            seen.add(here)
            pending += producers[here].input


def exposing(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Copy a graph so that some of its tensors are its outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return copy


def cut_at(model: onnx.ModelProto, names: Sequence[str], shapes: Sequence[Sequence[int]]) -> onnx.ModelProto:
    """
    Copy a graph so that every block takes its inputs from outside.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph.
    names : sequence of str
        Outputs of the blocks.
    shapes : sequence of sequence of int
        Their shapes.

    Returns
    -------
    cut : onnx.ModelProto
        Gives the outputs of all blocks. Who read one of them reads the input ``golden:NAME`` instead.
    """
    from onnx import TensorProto, helper

    cut, wanted = exposing(model, names), set(names)
    for node in cut.graph.node:
        for place, name in enumerate(node.input):
            if name in wanted:
                node.input[place] = GOLDEN + name
    used = {name for node in cut.graph.node for name in node.input}
    cut.graph.input.extend(
        helper.make_tensor_value_info(GOLDEN + name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
        if GOLDEN + name in used
    )
    return cut


def of_one_image(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph of a static batch so that it takes one image; the tensors of large batches would fill the memory."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        if value.name not in {tensor.name for tensor in copy.graph.initializer}:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    # Of the other operators none states the batch: they take it from what they read.
    known = constants(copy)
    sizes = {node.input[3] for node in copy.graph.node if node.op_type == "Resize" and len(node.input) > 3}
    for tensor in (known[name] for name in sizes & known.keys()):
        values = numpy_helper.to_array(tensor).copy()
        values[0] = 1
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def undo_pad_edit(model: onnx.ModelProto) -> int:
    """
    Let the Pads before max-poolings that fill with 0 fill with -inf, in place; returns how many did.

    Their edit is a step of its own with limits of its own, and changes most blocks of the BiFPN: it would hide others.
    """
    from onnx import TensorProto, helper

    pooled = {node.input[0] for node in model.graph.node if node.op_type == "MaxPool"}
    edited = [pad.node for pad in pad_fills(model) if pad.node.output[0] in pooled and pad.value == 0]
    for node in edited:
        lowest = helper.make_tensor(f"{node.output[0]}:lowest", TensorProto.FLOAT, (), [-math.inf])
        model.graph.initializer.append(lowest)
        node.input[2:] = [lowest.name]
    return len(edited)
