"""
Where every weight of a graph comes from: the checkpoint, by way of folded batch norm and fusion weights.

The account goes by place, not by likeness, so that two layers that swapped their weights are found out. The eager
network is run once and notes the order in which it calls its convolutions and its weighted fusions. The graph holds
both in the same order, because the TorchScript exporter writes operators as they are called and onnxsim (0.4.36 and
0.8.1 were tried) keeps that order. A tool that reorders them turns the account red, and the findings then name the
layer whose weights each place holds instead.

At each place the account computes from the checkpoint, in float64, what the graph must hold, and compares:

* the weight and bias of a convolution, with the batch norm that directly follows it folded in
  (Jacob et al., arXiv:1712.05877, section 3.2): ``w * gamma / sqrt(var + eps)`` and
  ``beta + (bias - mean) * gamma / sqrt(var + eps)``. Without batch norm they must be equal bit for bit;
* the coefficient of each input of a weighted fusion, ``relu(w_i) / (sum(relu(w)) + 0.0001)`` (Tan et al.,
  arXiv:1911.09070, section 3.3, fast normalised fusion). A simplifier may move a coefficient, or a factor of it, into
  the convolution before the fusion; the convolution must then hold exactly the factor that is missing.

Constants that only give shapes, indices or bounds, directly or through other operators, are known by that use and
need no source.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from support.errors import ContractViolationError
from support.graph_contract import constants

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["CallOrder", "Convolution", "WeightsAccount", "account", "call_order"]

Array = NDArray[np.float64]
Item = TypeVar("Item")

#: Added to the sum of the fusion weights. Source: effdet 0.4.1, efficientdet.py, FpnCombine.forward.
_FUSION_EPSILON = 0.0001

#: From which input on an operator takes shapes, indices or bounds instead of data (ONNX operator reference, opset 11).
_FIRST_SHAPE_INPUT = {"Clip": 1, "ConstantOfShape": 0, "Gather": 1, "Pad": 1, "Reshape": 1, "Resize": 1, "Slice": 1}

#: The operators by which a raw graph computes fusion coefficients from constants.
_CONSTANT_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "Add": np.add,
    "Gather": lambda values, index: values[int(index)],
    "ReduceSum": np.sum,
    "Relu": lambda values: np.maximum(values, 0),
}

#: Counted by batch norm in training and read by nothing afterwards, hence never exported.
_NEVER_EXPORTED = "num_batches_tracked"

#: How many findings of one kind are written out.
_SHOWN = 5


@dataclass(frozen=True)
class Convolution:
    """One call of a convolution: names of its tensors, of the batch norm right behind it, and that one's epsilon."""

    weight: str
    bias: str | None = None
    norm: str | None = None
    epsilon: float = 0.0


@dataclass(frozen=True)
class CallOrder:
    """
    What a network calls, in order.

    Parameters
    ----------
    convolutions : tuple of Convolution
        Every call, so that a convolution shared by all levels is there once for each.
    fusions : tuple of str
        Every fusion of feature levels, by the name of its weights; empty for a fusion without weights.
    """

    convolutions: tuple[Convolution, ...]
    fusions: tuple[str, ...]


@dataclass(frozen=True)
class WeightsAccount:
    """
    The result of an account.

    Parameters
    ----------
    unaccounted : tuple of str
        Constants of the graph that have no source, or differ from what their source gives.
    unused : tuple of str
        Tensors of the checkpoint from which nothing in the graph comes.
    fold_error : float
        Largest error of all places where the shapes agree: the greatest difference from the required tensor, divided
        by the greatest absolute value of that.
    places : int
        How many weights, biases and coefficients the graph must hold.
    findings : tuple of str
        What is wrong, worst first.
    """

    unaccounted: tuple[str, ...]
    unused: tuple[str, ...]
    fold_error: float
    places: int
    findings: tuple[str, ...]


def call_order(network: torch.nn.Module, image_size: int) -> CallOrder:
    """
    Run a network once and note what it calls in which order.

    Parameters
    ----------
    network : torch.nn.Module
        An effdet network in inference mode; it is left as it is.
    image_size : int
        Side of its square input, in pixels.
    """
    import torch

    # On the meta device calls are made and nothing is computed.
    skeleton = copy.deepcopy(network).to("meta")
    names = {module: name for name, module in skeleton.named_modules()}
    calls = _Calls()

    def note(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, torch.nn.Conv2d):
            calls.convolution(names[module], module.bias is not None, output)
        elif isinstance(module, torch.nn.BatchNorm2d):
            calls.norm(names[module], module.eps, inputs[0])
        elif hasattr(module, "edge_weights"):
            calls.fusions.append("" if module.edge_weights is None else f"{names[module]}.edge_weights")

    for module in names:
        module.register_forward_hook(note)
    with torch.no_grad():
        skeleton(torch.zeros(1, 3, image_size, image_size, device="meta"))
    return CallOrder(tuple(calls.convolutions), tuple(calls.fusions))


@dataclass
class _Calls:
    """What was called so far."""

    convolutions: list[Convolution] = field(default_factory=list)
    fusions: list[str] = field(default_factory=list)
    latest_output: Any = None

    def convolution(self, name: str, has_bias: bool, output: Any) -> None:
        self.convolutions.append(Convolution(f"{name}.weight", f"{name}.bias" if has_bias else None))
        self.latest_output = output

    def norm(self, name: str, epsilon: float, given: Any) -> None:
        # Only a batch norm that takes the convolution's own output can be folded into it.
        if given is self.latest_output:
            self.convolutions[-1] = replace(self.convolutions[-1], norm=name, epsilon=epsilon)


def account(
    model: onnx.ModelProto,
    order: CallOrder,
    tensors: Mapping[str, ArrayLike],
    *,
    tolerance: float,
) -> WeightsAccount:
    """
    Account for every weight of a graph, raw, simplified or modified.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph.
    order : CallOrder
        What the network calls, from `call_order`.
    tensors : mapping of str to array
        The checkpoint by name.
    tolerance : float
        Greatest relative error of a folded tensor; one that was not folded must be equal bit for bit.

    Raises
    ------
    ContractViolationError
        If the graph has another number of convolutions, of fusions or of inputs of a fusion than the network.
    """
    graph = _Graph(model)
    checkpoint = {name: np.asarray(value) for name, value in tensors.items()}
    _same_count("convolutions", len(graph.convolutions), len(order.convolutions))
    _same_count("fusions", len(graph.fusions), len(order.fusions))
    places, carried = _fusion_places(graph, order.fusions, checkpoint, tolerance)
    for node, call in zip(graph.convolutions, order.convolutions, strict=True):
        places += _convolution_places(graph, node, call, checkpoint, carried.get(node.output[0]))
    return _balance(places, graph.weights, checkpoint, tolerance)


def _same_count(what: str, found: int, required: int) -> None:
    if found != required:
        raise ContractViolationError(f"the graph has {found} {what}", required=f"{required}, as the network calls")


@dataclass(frozen=True)
class _Place:
    """Something the graph must hold: where, in which constants, from which tensors, and the values on both sides."""

    where: str
    label: str
    constants: tuple[str, ...]
    sources: frozenset[str]
    found: Array | None
    required: Array
    exact: bool = False

    def error(self, required: Array) -> float:
        """Greatest difference over greatest required value; infinite if nothing of the required shape is there."""
        if self.found is None or self.found.shape != required.shape:
            return math.inf
        difference, scale = float(np.abs(self.found - required).max()), float(np.abs(required).max())
        return difference / scale if scale else difference

    @cached_property
    def own_error(self) -> float:
        return self.error(self.required)

    def fits(self, tolerance: float) -> bool:
        return self.own_error <= (0 if self.exact else tolerance)


@dataclass(frozen=True)
class _Carried:
    """The factor of a fusion coefficient that a simplifier moved into the convolution before the fusion."""

    factor: float = 1.0
    constants: tuple[str, ...] = ()
    sources: frozenset[str] = frozenset()


def _fusion_places(
    graph: _Graph, fusions: Sequence[str], checkpoint: Mapping[str, NDArray[Any]], tolerance: float
) -> tuple[list[_Place], dict[str, _Carried]]:
    places: list[_Place] = []
    carried: dict[str, _Carried] = {}
    for node, name in zip(graph.fusions, fusions, strict=True):
        if not name:
            continue
        terms, required = graph.terms(node), _coefficients(checkpoint[name])
        _same_count(f"inputs of {node.name}", len(terms), len(required))
        for index, (term, value) in enumerate(zip(terms, required, strict=True)):
            where, label, sources = f"input {index} of {node.name}", f"{name}[{index}]", frozenset({name})
            place = _Place(where, label, term.constants, sources, np.array(term.coefficient), value)
            if place.fits(tolerance) or not (term.coefficient and graph.is_private_convolution(term.source)):
                places.append(place)
            else:
                carried[term.source] = _Carried(float(value) / term.coefficient, term.constants, sources)
    return places, carried


def _coefficients(weights: NDArray[Any]) -> list[Array]:
    positive = np.maximum(weights.astype(np.float64), 0)
    return [np.array(value) for value in positive / (positive.sum() + _FUSION_EPSILON)]


def _convolution_places(
    graph: _Graph,
    node: onnx.NodeProto,
    call: Convolution,
    checkpoint: Mapping[str, NDArray[Any]],
    carried: _Carried | None,
) -> Iterator[_Place]:
    part = carried or _Carried()
    for slot, (names, required) in enumerate(_folded(call, checkpoint), start=1):
        name = graph.origin(node.input[slot]) if slot < len(node.input) else ""
        yield _Place(
            where=node.name,
            label=" with ".join(names[:2]),
            constants=(*({name} & graph.constants.keys()), *part.constants),
            sources=part.sources.union(names),
            found=graph.array(name),
            required=required * part.factor,
            exact=call.norm is None and carried is None,
        )


def _folded(call: Convolution, checkpoint: Mapping[str, NDArray[Any]]) -> Iterator[tuple[tuple[str, ...], Array]]:
    """Weight and then bias (if any) of a convolution, each with the tensors it comes from, the main one first."""
    weight, biases = call.weight, () if call.bias is None else (call.bias,)
    if call.norm is None:
        yield from (((name,), checkpoint[name].astype(np.float64)) for name in (weight, *biases))
        return
    gamma, beta, mean, var = (f"{call.norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    values = {name: checkpoint[name].astype(np.float64) for name in (weight, *biases, gamma, beta, mean, var)}
    scale = values[gamma] / np.sqrt(values[var] + call.epsilon)
    yield (weight, gamma, var), values[weight] * scale[:, None, None, None]
    shift = sum((values[name] for name in biases), -values[mean])
    yield (beta, *biases, mean, gamma, var), values[beta] + shift * scale


def _balance(
    places: Sequence[_Place], weights: frozenset[str], checkpoint: Iterable[str], tolerance: float
) -> WeightsAccount:
    good = [place for place in places if place.fits(tolerance)]
    bad = sorted((place for place in places if not place.fits(tolerance)), key=lambda place: -place.own_error)
    # A constant that several layers share must fit in all of them.
    wrong = weights & {name for place in bad for name in place.constants}
    stray = sorted(weights - wrong - {name for place in good for name in place.constants})
    sources = {name for place in good for name in place.sources}
    unused = [name for name in checkpoint if name not in sources and not name.endswith(_NEVER_EXPORTED)]
    return WeightsAccount(
        unaccounted=(*sorted(wrong), *stray),
        unused=tuple(unused),
        fold_error=max((place.own_error for place in places if math.isfinite(place.own_error)), default=0.0),
        places=len(places),
        findings=(
            *_told(bad, lambda place: _mismatch(place, places)),
            *_told(stray, lambda name: f"{name!r} of the graph has no source in the checkpoint"),
            *_told(unused, lambda name: f"{name} of the checkpoint is nowhere in the graph"),
        ),
    )


def _mismatch(place: _Place, places: Sequence[_Place]) -> str:
    held = f"{', '.join(map(repr, dict.fromkeys(place.constants))) or 'no constant'} at {place.where}"
    if place.found is None or place.found.shape != place.required.shape:
        shape = () if place.found is None else place.found.shape
        return f"{held} has the shape {shape}, {place.label} needs {place.required.shape}"
    nearest = min(places, key=lambda other: place.error(other.required))
    hint = f"; nearest is {nearest.label} ({place.error(nearest.required):.2g})" if nearest.label != place.label else ""
    return f"{held} is not {place.label} (relative error {place.own_error:.2g}){hint}"


def _told(items: Sequence[Item], sentence: Callable[[Item], str]) -> list[str]:
    rest = len(items) - _SHOWN
    return [*map(sentence, items[:_SHOWN]), *([f"and {rest} more of this kind"] if rest > 0 else [])]


@dataclass(frozen=True)
class _Term:
    """One input of a weighted fusion: the tensor, and what the graph multiplies it by, with the constants for that."""

    source: str
    coefficient: float
    constants: tuple[str, ...]


class _Graph:
    """
    An ONNX graph seen as weights.

    Attributes
    ----------
    constants : mapping of str to onnx.TensorProto
        Every constant.
    weights : frozenset of str
        The constants that need a source: those that reach the outputs as data, and those that reach nothing.
    convolutions, fusions : list of onnx.NodeProto
        In the order of the graph; a fusion is a sum over a concatenation.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        nodes = model.graph.node
        outputs = [value.name for value in model.graph.output]
        self.constants = constants(model)
        self._producers = {name: node for node in nodes for name in node.output}
        self._uses = Counter([*(name for node in nodes for name in node.input), *outputs])
        self.convolutions = [node for node in nodes if node.op_type == "Conv"]
        self.fusions = [
            node for node in nodes if node.op_type == "ReduceSum" and self._made_by(node.input[0], "Concat")
        ]
        data = self._behind(outputs, _data_inputs)
        shapes = self._behind((name for node in nodes for name in _shape_inputs(node)), lambda node: node.input)
        self.weights = frozenset(name for name in self.constants if name in data or name not in shapes)

    def origin(self, name: str) -> str:
        """Name under which a tensor is stored; exporters that merge equal weights hand them on by Identity."""
        while self._made_by(name, "Identity"):
            name = self._producers[name].input[0]
        return name

    def array(self, name: str) -> Array | None:
        """Values of a constant, or None if there is none of that name."""
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor).astype(np.float64)

    def is_private_convolution(self, name: str) -> bool:
        """Whether a tensor is the output of a convolution that a single operator reads."""
        return self._made_by(name, "Conv") and self._uses[name] == 1

    def terms(self, fusion: onnx.NodeProto) -> list[_Term]:
        """Return the inputs of a weighted fusion with their coefficients."""
        return [self._term(name) for name in self._producers[fusion.input[0]].input]

    def _term(self, name: str) -> _Term:
        coefficient, used = 1.0, tuple[str, ...]()
        while (step := self._step(name)) is not None:
            name, factor, names = step
            coefficient, used = coefficient * factor, (*names, *used)
        return _Term(name, coefficient, used)

    def _step(self, name: str) -> tuple[str, float, tuple[str, ...]] | None:
        """Go back by one view or one multiplication by a constant: the tensor before it, the factor, its constants."""
        node = self._producers.get(name)
        if node is None or node.op_type not in ("Unsqueeze", "Mul", "Div"):
            return None
        if node.op_type == "Unsqueeze":
            return node.input[0], 1.0, ()
        constant = self._evaluate(node.input[1])
        if constant is None or constant[0].size != 1:
            return None
        value, names = float(constant[0].item()), constant[1]
        if node.op_type == "Div":
            value = 1 / value if value else math.inf
        return node.input[0], value, names

    def _evaluate(self, name: str) -> tuple[Array, tuple[str, ...]] | None:
        """Value of a tensor that is computed from constants alone, and their names."""
        name = self.origin(name)
        array = self.array(name)
        if array is not None:
            return array, (name,)
        node = self._producers.get(name)
        if node is None or node.op_type not in _CONSTANT_ARITHMETIC:
            return None
        parts = [part for part in map(self._evaluate, node.input) if part is not None]
        if len(parts) != len(node.input):
            return None
        result = _CONSTANT_ARITHMETIC[node.op_type](*(array for array, _ in parts))
        return np.asarray(result), tuple(name for _, names in parts for name in names)

    def _made_by(self, name: str, op_type: str) -> bool:
        node = self._producers.get(name)
        return node is not None and node.op_type == op_type

    def _behind(self, names: Iterable[str], inputs: Callable[[onnx.NodeProto], Iterable[str]]) -> set[str]:
        """All tensors from which some tensors are computed, going back through the given inputs of each operator."""
        seen: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            node = None if name in seen else self._producers.get(name)
            seen.add(name)
            # What Shape takes is data, but none of it reaches the other side.
            if node is not None and node.op_type != "Shape":
                pending += inputs(node)
        return seen


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input[: _FIRST_SHAPE_INPUT.get(node.op_type)])


def _shape_inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input[_FIRST_SHAPE_INPUT.get(node.op_type, len(node.input)) :])
