"""The raw outputs of the network, told apart by what they are and not by where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.anchors import level_sizes
from support.errors import ContractViolationError, NotFiniteError
from support.spec import Model

__all__ = ["Heads", "head_shapes", "pair_heads", "require_finite", "require_heads"]

#: Numbers that place one box: offsets of its centre and logarithms of its sides, (y, x, height, width).
BOX_CODES = 4


@dataclass(frozen=True, eq=False)
class Heads:
    """
    Class logits and box codes of a batch.

    Parameters
    ----------
    classes : tuple of ndarray of float32, shape (B, A * C, s, s)
        Logits per level, fine to coarse; channel ``a * C + c`` is class ``c`` of the cell's anchor ``a``.
    boxes : tuple of ndarray of float32, shape (B, A * 4, s, s)
        Box codes per level, fine to coarse; channels ``a * 4`` to ``a * 4 + 3`` are (y, x, height, width).
    names : tuple of str, optional
        What the model calls the outputs, class heads first; for messages only.
    """

    classes: tuple[NDArray[np.float32], ...]
    boxes: tuple[NDArray[np.float32], ...]
    names: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.classes[0])

    def row(self, index: int) -> Heads:
        """Return the heads of one image, as a batch of one; a view."""
        return self.rows(slice(index, index + 1))

    def rows(self, indices: slice | NDArray[np.integer]) -> Heads:
        """Return the heads of some images; a view if `indices` is a slice."""
        classes, boxes = (tuple(head[indices] for head in heads) for heads in (self.classes, self.boxes))
        return Heads(classes, boxes, self.names)

    def titles(self) -> tuple[str, ...]:
        """Name every head for a message, class heads first."""
        kinds = ["class"] * len(self.classes) + ["box"] * len(self.boxes)
        titles = [
            f"{kind} head {head.shape[-2]}x{head.shape[-1]}"
            for kind, head in zip(kinds, (*self.classes, *self.boxes), strict=True)
        ]
        if not self.names:
            return tuple(titles)
        return tuple(f"output {name!r} ({title})" for name, title in zip(self.names, titles, strict=True))


def head_shapes(model: Model, batch: int) -> tuple[tuple[int, ...], ...]:
    """
    Give the shapes of the class heads and then of the box heads, each fine to coarse.

    Parameters
    ----------
    model : support.spec.Model
        Gives image size, levels, classes and anchors per cell.
    batch : int
        Number of images.

    Examples
    --------
    >>> from support.spec import load_spec
    >>> shapes = head_shapes(load_spec("efficientdet_d0").model, batch=16)
    >>> len(shapes), shapes[0], shapes[-1]
    (10, (16, 810, 64, 64), (16, 36, 4, 4))
    """
    anchors, sizes = model.anchors_per_cell, level_sizes(model)
    return tuple((batch, anchors * each, size, size) for each in (model.classes, BOX_CODES) for size in sizes)


def pair_heads(outputs: Mapping[str, NDArray[np.float32]], model: Model, batch: int) -> Heads:
    """
    Tell by its shape which head each output is; names and order of a model's outputs mean nothing.

    Values are not read. They are checked where each is read anyway: `Decoder.decode` refuses heads that are not finite,
    and `require_finite` is for heads that are compared and not decoded.

    Parameters
    ----------
    outputs : mapping of str to ndarray
        Everything the model gave, by name.
    model : support.spec.Model
        What it must give.
    batch : int
        Number of images computed.

    Raises
    ------
    ContractViolationError
        If an output is missing, surplus, of the wrong shape or type, or if two have the same shape; the message lists
        what was given and what is required.
    """
    wanted = head_shapes(model, batch)
    by_shape = {array.shape: name for name, array in outputs.items()}
    fault = _mispaired(outputs, by_shape, wanted) or _mistyped(outputs)
    if fault:
        given = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in outputs.items())
        raise ContractViolationError(
            f"the model's outputs are not the heads of the network: {fault}; it gives {given or 'nothing'}",
            required=f"{len(wanted)} outputs of float32: {_listed(wanted)}",
            remedy="check that the model is the architecture of the spec, and its image and batch size",
        )
    names = tuple(by_shape[shape] for shape in wanted)
    heads = tuple(outputs[name] for name in names)
    levels = len(heads) // 2
    return Heads(heads[:levels], heads[levels:], names)


def _mispaired(
    outputs: Mapping[str, NDArray[np.float32]],
    by_shape: Mapping[tuple[int, ...], str],
    wanted: tuple[tuple[int, ...], ...],
) -> str:
    if len(outputs) != len(wanted):
        return f"{len(outputs)} outputs instead of {len(wanted)}"
    twins = [name for name, array in outputs.items() if by_shape[array.shape] != name]
    if twins:
        return f"{', '.join(twins)} cannot be told from another output of the same shape"
    missing, surplus = [shape for shape in wanted if shape not in by_shape], by_shape.keys() - set(wanted)
    if missing or surplus:
        strangers = ", ".join(sorted(by_shape[shape] for shape in surplus))
        return f"{strangers} is like no head, and no output is of shape {_listed(missing)}"
    return ""


def _mistyped(outputs: Mapping[str, NDArray[np.float32]]) -> str:
    wrong = [f"{name} is {array.dtype}" for name, array in outputs.items() if array.dtype != np.float32]
    return ", ".join(wrong)


def _listed(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def require_heads(heads: Heads, model: Model) -> None:
    """
    Refuse heads whose shapes or types are not those of the model.

    Raises
    ------
    ContractViolationError
        With both lists.
    """
    given = [(head.shape, head.dtype.name) for head in (*heads.classes, *heads.boxes)]
    wanted = [(shape, "float32") for shape in head_shapes(model, heads.batch)]
    if given != wanted:
        raise ContractViolationError(f"the heads are {given}", required=str(wanted))


def require_finite(heads: Heads) -> None:
    """
    Refuse heads that hold a value that is not a number or not finite.

    Raises
    ------
    NotFiniteError
        With the first such head and slot of the batch, and how many values are affected there.
    """
    for title, head in zip(heads.titles(), (*heads.classes, *heads.boxes), strict=True):
        for slot, values in enumerate(head):
            if not np.isfinite(values).all():
                raise NotFiniteError(
                    f"{title}, image slot {slot}: {np.isnan(values).sum()} NaN and {np.isinf(values).sum()} infinite "
                    f"of {values.size} values",
                    required="finite values",
                    remedy="overflow in mixed precision: compare with a model built in full precision",
                    slot=slot,
                )
