"""Measurements on a compiled model: is it the one that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from support.ascend.om_facts import OmFacts
from support.backends.base import TensorInfo
from support.heads import head_shapes
from support.spec import Model
from support.verdict import Measurement

__all__ = ["om_contract"]


def om_contract(
    loaded: tuple[TensorInfo, tuple[TensorInfo, ...]],
    facts: OmFacts | None,
    model: Model,
    *,
    batch: int,
    soc_version: str,
    fp32_types: Sequence[str],
) -> Measurement:
    """
    Count in what a compiled model is not the one of its batch size and chip.

    Parameters
    ----------
    loaded : tuple of (input, outputs)
        As the runtime describes the loaded model.
    facts : OmFacts or None
        As the compiler describes the file; None on a host without it, where chip and precision stay unverified.
    model : support.spec.Model
        The network.
    batch : int
        Batch size it was made for.
    soc_version : str
        Chip it runs on.
    fp32_types : sequence of str
        Types of operators that must keep float32, as the compiler names them.
    """
    found = list(_interface("loaded", loaded[0], loaded[1], model, batch))
    if facts is None:
        unverified = "not-verified: chip, precision and operators, since this host has no atc"
        return Measurement({"violations": len(found)}, count=1, expected=1, findings=(*found, unverified))
    found += [*_compiled(facts, soc_version), *_kept(facts, fp32_types)]
    if len(facts.inputs) == 1:
        found += _interface("file", facts.inputs[0], facts.outputs, model, batch)
    else:
        found.append(f"file: {len(facts.inputs)} inputs instead of one")
    return Measurement({"violations": len(found)}, count=1, expected=1, findings=(*found, *_told(facts, fp32_types)))


def _interface(
    where: str, tensor: TensorInfo, outputs: Sequence[TensorInfo], model: Model, batch: int
) -> Iterator[str]:
    side = model.image_size
    if tensor.shape != (batch, 3, side, side):
        yield f"{where}: input of shape {list(tensor.shape)} instead of {[batch, 3, side, side]}"
    if tensor.dtype != "float32":
        yield f"{where}: input of {tensor.dtype} instead of float32"
    shapes, wanted = [info.shape for info in outputs], list(head_shapes(model, batch))
    if sorted(shapes) != sorted(wanted):
        yield f"{where}: outputs of shapes {shapes} instead of {wanted}"
    for dtype in sorted({info.dtype for info in outputs} - {"float32"}):
        yield f"{where}: outputs of {dtype} instead of float32"


def _compiled(facts: OmFacts, soc_version: str) -> Iterator[str]:
    if facts.soc_version is not None and facts.soc_version != soc_version:
        yield f"compiled for {facts.soc_version}, the device is an {soc_version}"
    if facts.dynamic:
        yield "compiled for several batch sizes; every size has a model of its own"
    if facts.aipp:
        yield "compiled with AIPP: it takes raw pixels"


def _kept(facts: OmFacts, fp32_types: Sequence[str]) -> Iterator[str]:
    for kind in fp32_types:
        half, count = facts.half_operators.get(kind, 0), facts.operators.get(kind, 0)
        if half:
            yield f"{half} of {count} {kind} compute in half precision; the mixed-precision list was ignored"
        # A compiler that keeps the axes an input has the type without its D, and passes over the entry in silence.
        other = kind.removesuffix("D")
        lowered = facts.half_operators.get(other, 0)
        if not count and other != kind and lowered:
            yield f"{lowered} {other} compute in half precision; the mixed-precision list names {kind}"


def _told(facts: OmFacts, fp32_types: Sequence[str]) -> Iterator[str]:
    if facts.soc_version is None:
        yield "not-verified: the chip, which the file does not tell"
    for kind in fp32_types:
        count = facts.operators.get(kind, 0)
        silent = count - facts.fp32_operators.get(kind, 0) - facts.half_operators.get(kind, 0)
        if silent:
            yield f"not-verified: the precision of {silent} of {count} {kind}, which the file does not tell"
        if not count:
            yield f"the model has no {kind}, which the mixed-precision list names"
    kept = ", ".join(f"{count} {kind}" for kind, count in sorted(facts.fp32_operators.items())) or "none"
    version, mode = facts.atc_version or "of unknown version", facts.precision_mode or "unknown precision mode"
    yield f"atc {version}, {mode}; fp32: {kept}"
