"""Detections of a pass, and how raw heads become detections."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.anchors import anchor_boxes, level_sizes
from support.arrays import load_arrays
from support.errors import ContractViolationError, NoDataError, SuiteError, WrongDataError
from support.heads import BOX_CODES, Heads, require_finite, require_heads
from support.spec import Model

__all__ = ["Decoder", "Detections"]


@dataclass(frozen=True, eq=False)
class Detections:
    """
    What was found on the images of a pass, one entry per box, columns side by side.

    Parameters
    ----------
    images : ndarray of int64, shape (M,)
        Id of every image that was processed, in the order of the pass; also of those on which nothing was found.
    image_ids : ndarray of int64, shape (N,)
        Image of each box.
    boxes : ndarray of float32, shape (N, 4)
        (x0, y0, x1, y1) in image pixels.
    scores : ndarray of float32, shape (N,)
        Sigmoid of the class logit; descending within an image.
    category_ids : ndarray of int32, shape (N,)
        COCO category ids, class index + 1.
    anchors : ndarray of int32, shape (N,)
        Which anchor of `support.anchors.anchor_boxes` each box comes from.

    Raises
    ------
    WrongDataError
        If a column has another type or length than it must.
    """

    images: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    category_ids: NDArray[np.int32]
    anchors: NDArray[np.int32]

    def __post_init__(self) -> None:
        for name, (kind, inner) in COLUMNS.items():
            column = getattr(self, name)
            wanted = (column.size if name == "images" else self.image_ids.size, *inner)
            if column.dtype != kind or column.shape != wanted:
                raise WrongDataError(
                    f"column {name} of the detections is {column.dtype} {list(column.shape)}",
                    required=f"{np.dtype(kind)} {list(wanted)}",
                )

    def of(self, image_id: int) -> Detections:
        """
        Return the detections of one image, in their order.

        Raises
        ------
        WrongDataError
            If the image was not processed.
        """
        if image_id not in self._processed:
            raise WrongDataError(f"image {image_id} is not among the {self.images.size} images of these detections")
        order, ids = self._by_image
        first, last = np.searchsorted(ids, [image_id, image_id + 1])
        return self._taken(np.asarray([image_id], np.int64), order[first:last])

    def select(self, image_ids: Collection[int]) -> Detections:
        """
        Return the detections of some images, images and boxes in the order of the pass.

        Raises
        ------
        WrongDataError
            If one of the images was not processed; the message names the first.
        """
        missing = sorted(set(image_ids) - self._processed)
        if missing:
            raise WrongDataError(f"{len(missing)} images are not among these detections, the first is {missing[0]}")
        wanted = np.fromiter(image_ids, np.int64, len(image_ids))
        rows = np.flatnonzero(np.isin(self.image_ids, wanted))
        return self._taken(self.images[np.isin(self.images, wanted)], rows)

    @staticmethod
    def concatenate(parts: Sequence[Detections]) -> Detections:
        """Join the parts of a pass in their order; no part gives detections of no image."""
        columns = {name: np.empty((0, *inner), kind) for name, (kind, inner) in COLUMNS.items()}
        for name, empty in columns.items():
            columns[name] = np.concatenate([empty, *(getattr(part, name) for part in parts)])
        return Detections(**columns)

    def save(self, path: Path) -> None:
        """
        Write all columns into an npz file, which appears whole or not at all.

        Parameters
        ----------
        path : Path
            File to write or replace; its folder exists.
        """
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, **{name: getattr(self, name) for name in COLUMNS})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Detections:
        """
        Read what `save` wrote.

        Raises
        ------
        NoDataError
            If there is no such file.
        WrongDataError
            If the file is damaged or does not hold exactly the columns of detections.
        """
        if not path.is_file():
            raise NoDataError(f"{path} does not exist", required="detections of an earlier run")
        columns = load_arrays(path, remedy="write it again")
        if columns.keys() != COLUMNS.keys():
            raise WrongDataError(f"{path} holds {sorted(columns)}", required=f"exactly {sorted(COLUMNS)}")
        try:
            return cls(**columns)
        except WrongDataError as error:
            raise WrongDataError(f"{path}: {error.found}", required=error.required) from error

    @cached_property
    def _processed(self) -> frozenset[int]:
        return frozenset(self.images.tolist())

    @cached_property
    def _by_image(self) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        order = np.argsort(self.image_ids, kind="stable")
        return order, self.image_ids[order]

    def _taken(self, images: NDArray[np.int64], rows: NDArray[np.intp]) -> Detections:
        return Detections(images, *(getattr(self, field.name)[rows] for field in fields(self)[1:]))


#: Type, and shape of an entry, of every column.
COLUMNS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "images": (np.int64, ()),
    "image_ids": (np.int64, ()),
    "boxes": (np.float32, (4,)),
    "scores": (np.float32, ()),
    "category_ids": (np.int32, ()),
    "anchors": (np.int32, ()),
}


class Decoder:
    """
    Turns raw heads into detections, as effdet 0.4.1 does (bench.py, ``DetBenchPredict``), only faster.

    The best `max_points` logits of all levels and classes become candidates, class-wise suppression thins them out, and
    the best `max_detections` remain. Where effdet leaves an order to chance, because its sorts are not stable, ours is
    fixed: by descending logit (-0 below +0), and for equal logits by ascending ``anchor * classes + class``. Scores
    follow that order, since the sigmoid never falls, although large logits share the score 1.

    A decoder never changes, so threads may share one. Its first call loads the compiled kernels.

    Parameters
    ----------
    model : support.spec.Model
        Gives heads, anchors and limits.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        boxes, two = anchor_boxes(model), np.float32(2)
        # Centre and sides in float32, rounded as effdet rounds them (anchors.py, decode_box_outputs).
        self._anchors = np.column_stack([(boxes[:, :2] + boxes[:, 2:]) / two, boxes[:, 2:] - boxes[:, :2]])
        self._cells = tuple(size * size for size in level_sizes(model))
        self._places, self._steps = _code_places(self._cells, model.anchors_per_cell)

    def decode(
        self, heads: Heads, image_ids: NDArray[np.int64], scales: NDArray[np.float64], sizes: NDArray[np.int32]
    ) -> Detections:
        """
        Decode a batch.

        Parameters
        ----------
        heads : Heads
            Of B images; contiguous arrays are not copied.
        image_ids : ndarray of int64, shape (B,)
            Their ids.
        scales : ndarray of float64, shape (B,)
            Image pixels per network pixel.
        sizes : ndarray of int32, shape (B, 2)
            Width and height of each image in pixels; boxes are clipped to it.

        Returns
        -------
        detections : Detections
            Of every image, in the order of the batch, best first.

        Raises
        ------
        ContractViolationError
            If the heads are not those of the model, hold a value that is not finite, or give one of the best boxes a
            coordinate that is not a number, because float32 overflows in both its centre and its side.
        """
        require_heads(heads, self._model)
        if not heads.batch == len(image_ids) == len(scales) == len(sizes):
            raise SuiteError(
                f"heads of {heads.batch} images, {len(image_ids)} ids, {len(scales)} scales and {len(sizes)} sizes",
                required="one of each for every image",
            )
        return Detections.concatenate(
            [
                self._image(heads, slot, int(image_ids[slot]), np.float32(scales[slot]), sizes[slot])
                for slot in range(heads.batch)
            ]
        )

    def _image(self, heads: Heads, slot: int, image_id: int, scale: np.float32, size: NDArray[np.int32]) -> Detections:
        from support import kernels

        model = self._model
        keys = self._candidates(heads, slot)
        codes = np.concatenate([head[slot].reshape(-1) for head in heads.boxes])
        if not np.isfinite(codes).all():
            require_finite(heads)
        right, bottom = size.astype(np.float32) / scale
        anchor_table = self._anchors, self._places, self._steps
        threshold, limit = model.iou_threshold, model.max_detections
        kept, boxes = kernels.suppress(keys, codes, *anchor_table, model.classes, right, bottom, threshold, limit)
        _require_numbers(boxes, image_id)
        anchors, labels = np.divmod(keys[kept] & kernels.FLAT_MASK, model.classes)
        return Detections(
            images=np.asarray([image_id], np.int64),
            image_ids=np.full(len(kept), image_id, np.int64),
            boxes=boxes * scale,
            scores=_sigmoid(kernels.logits(keys[kept])),
            category_ids=(labels + 1).astype(np.int32),
            anchors=anchors.astype(np.int32),
        )

    def _candidates(self, heads: Heads, slot: int) -> NDArray[np.int64]:
        from support import kernels

        model = self._model
        levels = [np.ascontiguousarray(head[slot]).reshape(-1).view(np.int32) for head in heads.classes]
        maxima = [kernels.block_maxima(bits) for bits in levels]
        best = np.concatenate(maxima)
        if best.max() >= kernels.LOWEST_BAD_RANK:
            require_finite(heads)
        # As many blocks as we want logits hold one at or above this floor, so no wanted logit is below it.
        ranks = _ranks(levels, maxima, _floor(best, model.max_points))
        floor = _floor(ranks, model.max_points)
        keys = np.empty(np.count_nonzero(ranks >= floor), np.int64)
        count, first = 0, 0
        for bits, highest, cells in zip(levels, maxima, self._cells, strict=True):
            layout = cells, first, model.anchors_per_cell, model.classes
            count = kernels.collect(bits, highest, floor, *layout, keys, count)
            first += cells * model.anchors_per_cell
        # Equal logits at the cut are all here; no two keys are equal, so what the sort leaves is the only choice.
        return np.sort(keys)[: model.max_points]


def _floor(ranks: NDArray[np.int32], wanted: int) -> int:
    from support import kernels

    # The rank that `wanted` of these reach, or one that every number reaches if they are not so many.
    return int(np.partition(ranks, -wanted)[-wanted] if ranks.size >= wanted else kernels.LOWEST_RANK)


def _ranks(levels: Sequence[NDArray[np.int32]], maxima: Sequence[NDArray[np.int32]], floor: int) -> NDArray[np.int32]:
    from support import kernels

    blocks = sum(np.count_nonzero(highest >= floor) for highest in maxima)
    ranks, count = np.empty(blocks * kernels.BLOCK + 1, np.int32), 0
    for bits, highest in zip(levels, maxima, strict=True):
        count = kernels.gather(bits, highest, floor, ranks, count)
    return ranks[:count]


def _code_places(cells: Sequence[int], per_cell: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # The codes of an anchor are four channels of its level, so they lie one level's cells apart.
    places, start = [], 0
    for count in cells:
        cell, anchor = np.divmod(np.arange(count * per_cell), per_cell)
        places.append(start + anchor * BOX_CODES * count + cell)
        start += count * per_cell * BOX_CODES
    return np.concatenate(places), np.repeat(cells, np.multiply(cells, per_cell))


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # In float32 like effdet's, exp alone rounded once from float64; it overflows to a score of 0 below -88.7.
    with np.errstate(over="ignore"):
        exponential = np.exp(-logits.astype(np.float64)).astype(np.float32)
    return np.float32(1) / (np.float32(1) + exponential)


def _require_numbers(boxes: NDArray[np.float32], image_id: int) -> None:
    broken = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
    if broken.size:
        raise ContractViolationError(
            f"image {image_id}: {broken.size} of the best {len(boxes)} boxes are not numbers, the first is detection "
            f"{broken[0]}",
            required="box codes whose centre and sides do not both overflow float32",
            remedy="first suspect: saturated box heads",
        )
