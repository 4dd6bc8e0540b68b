"""How far each block of a graph is from the network's: by itself, and with what it inherits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from support.backends.base import runtime_failure
from support.errors import SuiteError, ToolError
from support.localiser.graph import GOLDEN, boundaries, cut_at, exposing, of_one_image, sources, undo_pad_edit
from support.localiser.network import IMAGE, Network
from support.localiser.record import BlockError, BlockSearch
from support.onnx_files import input_shapes
from support.simulator.precision import lowered, lowered_nodes
from support.spec import Atc

if TYPE_CHECKING:
    import onnx

__all__ = ["search", "search_in_half_precision"]

#: Blocks that may read something else than in the network. A wrong connection concerns one or two; more mean that
#: operators were reordered, and then no block can be told from another.
MOST_MISREADING = 2


def search(model: onnx.ModelProto, network: Network) -> BlockSearch:
    """
    Run every block of a graph on what the network gives the block, and in the chain of all blocks.

    An error that a block makes itself is there in both; one that it inherits is there in the chain alone. Pads that the
    modify stage let fill with 0 fill with -inf again, since that edit is judged by itself.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph under test, of any static batch and in float32; names mean nothing.
    network : Network
        What it should be.

    Raises
    ------
    ContractViolationError
        If the graph departs from the network; the message names the block.
    ToolError
        If its blocks cannot be told, or ONNX Runtime cannot run it.
    """
    return _search(model, network, "the ONNX in float32 on the CPU", lambda graph: graph)


def search_in_half_precision(model: onnx.ModelProto, network: Network, atc: Atc) -> BlockSearch:
    """
    Do the same with a graph whose operators round as the compiler's mixed precision lets them.

    A number that half precision cannot hold becomes infinite, and with it the error of the block.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph that is compiled.
    network : Network
        What it should be.
    atc : support.spec.Atc
        Precision mode and list of exceptions.

    Raises
    ------
    ContractViolationError, ToolError
        As `search`.
    """

    def rounding(graph: onnx.ModelProto) -> onnx.ModelProto:
        for place, node in enumerate(graph.graph.node):
            node.name = node.name or f"operator {place}"
        return lowered(graph, lowered_nodes(graph, atc.precision_mode, atc.kept_types), saturate=False)

    return _search(model, network, f"the ONNX on the CPU, {atc.precision_mode} emulated", rounding)


def _search(
    model: onnx.ModelProto, network: Network, method: str, change: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> BlockSearch:
    names = boundaries(model, network)
    wiring = _wiring(model, names, network)
    graph = of_one_image(model)
    pads = undo_pad_edit(graph)
    local, chained = _compare(change(graph), names, network)
    rows = zip(network.blocks, local, chained, wiring, strict=True)
    errors = tuple(
        BlockError(block=block.title, local=own, chained=both, wiring=text) for block, own, both, text in rows
    )
    return BlockSearch(method=method, images=len(network.images), pads_undone=pads, errors=errors)


def _compare(graph: onnx.ModelProto, names: Sequence[str], network: Network) -> tuple[list[float], list[float]]:
    """Give the greatest error of every block over all images: by itself, and in the chain."""
    (pixels,) = input_shapes(graph)
    cut = cut_at(graph, names, [(1, *block.output.shape[1:]) for block in network.blocks])
    alone, chain = _Session(cut), _Session(exposing(graph, names))
    errors = np.zeros((2, len(names)))
    for row, image in enumerate(network.images):
        golden = [block.output[row : row + 1] for block in network.blocks]
        given = {GOLDEN + name: tensor for name, tensor in zip(names, golden, strict=True)} | {pixels: image[None]}
        found = [_errors(golden, session.run(names, given)) for session in (alone, chain)]
        errors = np.maximum(errors, found)
    local, chained = errors.tolist()
    return local, chained


def _wiring(model: onnx.ModelProto, names: Sequence[str], network: Network) -> list[str]:
    """Tell of each block what it reads instead of what it should."""
    found = sources(model, names)
    texts = [
        "" if reads == block.reads else f"reads {_listed(reads, network)} instead of {_listed(block.reads, network)}"
        for block, reads in zip(network.blocks, found, strict=True)
    ]
    wrong = sum(map(bool, texts))
    if wrong > MOST_MISREADING:
        raise ToolError(
            f"the blocks of the graph cannot be told: {wrong} of {len(texts)} read others than in the network",
            required="operators in the order in which the network calls them",
        )
    return texts


def _listed(places: frozenset[int], network: Network) -> str:
    titles = ["the image" if place == IMAGE else network.blocks[place].title for place in sorted(places)]
    return ", ".join(titles) or "nothing"


class _Session:
    """ONNX Runtime on a graph in memory."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises classes of its own that share no useful base
            raise runtime_failure("ONNX Runtime loading the blocks", error) from error
        self._inputs = {value.name for value in self._session.get_inputs()}

    def run(self, names: Sequence[str], given: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Compute some outputs; inputs the graph does not have are left out."""
        taken = {name: tensor for name, tensor in given.items() if name in self._inputs}
        try:
            arrays: list[NDArray[np.float32]] = self._session.run(list(names), taken)
        except SuiteError:  # the alarm of a deadline
            raise
        except Exception as error:  # as above
            raise runtime_failure("ONNX Runtime running the blocks", error) from error
        return arrays


def _errors(golden: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.array([_error(wanted, given) for wanted, given in zip(golden, found, strict=True)])


def _error(golden: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    if found.shape != golden.shape or not np.isfinite(found).all():
        return math.inf
    difference = np.abs(np.subtract(found, golden, dtype=np.float64)).max()
    return float(difference / max(np.abs(golden).max(), np.finfo(np.float32).tiny))
