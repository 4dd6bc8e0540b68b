"""The anchor boxes of the network, in the order in which the heads predict them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from support.spec import Model

__all__ = ["anchor_boxes", "level_sizes"]


def level_sizes(model: Model) -> tuple[int, ...]:
    """
    Give the side of each feature level in cells, fine to coarse.

    Each level halves the one below and rounds up (effdet 0.4.1, anchors.py, ``get_feat_sizes``).

    Examples
    --------
    >>> from support.spec import load_spec
    >>> level_sizes(load_spec("efficientdet_d0").model)
    (64, 32, 16, 8, 4)
    """
    sizes = [model.image_size]
    for _ in range(model.max_level):
        sizes.append((sizes[-1] + 1) // 2)
    return tuple(sizes[model.min_level :])


def anchor_boxes(model: Model) -> NDArray[np.float32]:
    """
    Compute all anchors, equal to the last bit to those of effdet 0.4.1 (anchors.py, ``Anchors``).

    Parameters
    ----------
    model : support.spec.Model
        Gives image size, levels and anchors.

    Returns
    -------
    boxes : ndarray of float32, shape (N, 4)
        (y0, x0, y1, x1) in network pixels: level by level from fine to coarse, row by row, cell by cell, and within a
        cell by size, then by ratio.
    """
    return np.concatenate([_level(model, size) for size in level_sizes(model)]).astype(np.float32)


def _level(model: Model, cells: int) -> NDArray[np.float64]:
    stride = model.image_size / cells
    centres = np.arange(stride / 2, model.image_size, stride)
    y, x = np.meshgrid(centres, centres, indexing="ij")
    octaves = [octave / model.anchor_octaves for octave in range(model.anchor_octaves)]
    sides = [model.anchor_scale * stride * 2**octave for octave in octaves]
    shapes = [(side * width / 2.0, side * height / 2.0) for side in sides for width, height in model.anchor_ratios]
    boxes = [np.stack([y - dy, x - dx, y + dy, x + dx], axis=-1) for dx, dy in shapes]
    return np.stack(boxes, axis=2).reshape(-1, 4)
