"""Compiled inner loops of the decoder. Importing this module imports numba, so it is imported where it is used.

All arithmetic is float32 in the order of effdet's, without fast-math: nothing is fused, reordered or approximated, and
no loop runs in parallel, so results depend on the input alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "FLAT_MASK",
    "LOWEST_BAD_RANK",
    "LOWEST_RANK",
    "block_maxima",
    "collect",
    "gather",
    "logits",
    "suppress",
]

Function = TypeVar("Function", bound=Callable[..., Any])

#: Logits in a block. Below 64 the compiler gives up its vector loop; above, blocks hold more that is not wanted.
BLOCK = 64

#: A rank is the place of a float32 among all others, as an int32. Finite numbers rank from the lowest up to below the
#: bad ones, which are the infinities and NaN of either sign.
LOWEST_RANK = np.int32(-(2**31))
LOWEST_BAD_RANK = 0x7F000000

MAGNITUDE = np.int32(0x7FFFFFFF)
SIGN_SHIFT = np.int32(31)
#: By how much ranks are turned, so that -inf and negative NaN come round to the top: there are 2**23 of them.
TURN = np.int32(0x00800000)

#: A key holds a rank, inverted, above a flat index.
FLAT_BITS = np.int64(32)
FLAT_MASK = np.int64(0xFFFFFFFF)
ZERO, TWO = np.float32(0), np.float32(2)


def _compiled(function: Function) -> Function:
    # Under NumPy's error model 0 / 0 is NaN, as in torchvision, and not an exception.
    return cast(Function, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


@_compiled
def _rank(bits: np.int32) -> np.int32:
    # The bits of a float, read as an integer, order like the float itself once those of negative numbers are flipped.
    return np.int32(np.int32(bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE)) - TURN)


@_compiled
def block_maxima(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """
    Rank the largest value of every block of a head.

    Parameters
    ----------
    bits : ndarray of int32, shape (N,)
        The bits of float32 values.

    Returns
    -------
    maxima : ndarray of int32, shape (ceil(N / BLOCK),)
        The highest rank of each block, the last of which may be shorter. Ranks order like the values, -0 below +0, and
        are at least `LOWEST_BAD_RANK` for values that are not finite.
    """
    whole = bits.size // BLOCK
    maxima = np.full(-(-bits.size // BLOCK), LOWEST_RANK)
    blocks = bits[: whole * BLOCK].reshape(whole, BLOCK)
    for block in range(whole):
        highest = LOWEST_RANK
        for place in range(BLOCK):
            highest = max(highest, _rank(blocks[block, place]))
        maxima[block] = highest
    for place in range(whole * BLOCK, bits.size):
        maxima[whole] = max(maxima[whole], _rank(bits[place]))
    return maxima


@_compiled
def gather(bits: NDArray[np.int32], maxima: NDArray[np.int32], floor: int, ranks: NDArray[np.int32], count: int) -> int:
    """
    Append the ranks of a head that are at least `floor`.

    Parameters
    ----------
    bits, maxima : ndarray of int32
        As given to, and got from, `block_maxima`.
    floor : int
        Lowest rank to take.
    ranks : ndarray of int32
        Filled from `count` on; one longer than the ranks that can come.
    count : int
        Ranks already there.

    Returns
    -------
    count : int
        Ranks now there.
    """
    for block in range(maxima.size):
        if maxima[block] >= floor:
            for place in range(block * BLOCK, min((block + 1) * BLOCK, bits.size)):
                # Written in any case and overwritten unless counted: a branch here would be mispredicted too often.
                ranks[count] = _rank(bits[place])
                count += ranks[count] >= floor
    return count


@_compiled
def collect(
    bits: NDArray[np.int32],
    maxima: NDArray[np.int32],
    floor: int,
    cells: int,
    first_anchor: int,
    anchors_per_cell: int,
    classes: int,
    keys: NDArray[np.int64],
    count: int,
) -> int:
    """
    Append a key for every logit of one class head whose rank is at least `floor`.

    A key orders candidates by descending logit, then by ascending flat index ``anchor * classes + class``, where
    anchors are counted as in `support.anchors.anchor_boxes`.

    Parameters
    ----------
    bits : ndarray of int32, shape (A * C * cells,)
        The bits of the head's logits, channel by channel.
    maxima : ndarray of int32
        From `block_maxima`.
    floor : int
        Lowest rank to take.
    cells, first_anchor : int
        Cells of the level, and index of its first anchor.
    anchors_per_cell, classes : int
        A and C.
    keys : ndarray of int64
        Large enough; filled from `count` on.
    count : int
        Keys already there.

    Returns
    -------
    count : int
        Keys now there.
    """
    for block in range(maxima.size):
        if maxima[block] < floor:
            continue
        for place in range(block * BLOCK, min((block + 1) * BLOCK, bits.size)):
            rank = _rank(bits[place])
            if rank >= floor:
                channel, cell = place // cells, place % cells
                anchor = first_anchor + cell * anchors_per_cell + channel // classes
                keys[count] = (np.int64(~rank) << FLAT_BITS) | (anchor * classes + channel % classes)
                count += 1
    return count


@_compiled
def logits(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """
    Take the logits out of keys.

    Parameters
    ----------
    keys : ndarray of int64, shape (K,)
        From `collect`.

    Returns
    -------
    values : ndarray of float32, shape (K,)
        Exactly the logits the keys were made of.
    """
    bits = np.empty(keys.size, np.int32)
    for place in range(keys.size):
        turned = np.int32(~(keys[place] >> FLAT_BITS)) + TURN
        bits[place] = turned ^ ((np.int32(turned) >> SIGN_SHIFT) & MAGNITUDE)
    return bits.view(np.float32)


@_compiled
def suppress(
    keys: NDArray[np.int64],
    codes: NDArray[np.float32],
    anchors: NDArray[np.float32],
    places: NDArray[np.int64],
    steps: NDArray[np.int64],
    classes: int,
    right: np.float32,
    bottom: np.float32,
    iou_threshold: float,
    limit: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """
    Walk candidates from best to worst and keep those that no kept box of their class overlaps too much.

    Only boxes that are looked at are computed, and the walk ends with the last box wanted: a candidate is only ever
    suppressed by a better one, so nothing that follows can change the result.

    Parameters
    ----------
    keys : ndarray of int64, shape (K,)
        From `collect`, ascending.
    codes : ndarray of float32
        All box heads of the image, one after the other.
    anchors : ndarray of float32, shape (N, 4)
        (y, x) of the centre, height and width, in network pixels.
    places, steps : ndarray of int64, shape (N,)
        Where in `codes` the four codes of an anchor begin, and how far apart they lie.
    classes : int
        Number of classes.
    right, bottom : float32
        Size of the image in network pixels; boxes are clipped to it.
    iou_threshold : float
        A box with a larger intersection over union is suppressed.
    limit : int
        Most boxes to keep.

    Returns
    -------
    kept : ndarray of int64, shape (M,)
        Positions of the kept candidates in `keys`.
    boxes : ndarray of float32, shape (M, 4)
        Their (x0, y0, x1, y1) in network pixels.
    """
    kept, labels = np.empty(limit, np.int64), np.empty(limit, np.int64)
    boxes, areas = np.empty((limit, 4), np.float32), np.empty(limit, np.float32)
    count = 0
    for candidate in range(keys.size):
        if count == limit:
            break
        flat = keys[candidate] & FLAT_MASK
        anchor, label = flat // classes, flat % classes
        box = boxes[count]
        area = _decode(codes, places[anchor], steps[anchor], anchors[anchor], right, bottom, box)
        if _is_free(box, area, label, boxes, areas, labels, count, iou_threshold):
            kept[count], labels[count], areas[count] = candidate, label, area
            count += 1
    return kept[:count], boxes[:count]


@_compiled
def _decode(
    codes: NDArray[np.float32],
    place: int,
    step: int,
    anchor: NDArray[np.float32],
    right: np.float32,
    bottom: np.float32,
    box: NDArray[np.float32],
) -> np.float32:
    # effdet 0.4.1, anchors.py: decode_box_outputs, clip_boxes_xyxy. exp is rounded once, from float64, so that it does
    # not depend on the C library; where it overflows the box becomes infinite and is clipped to the image.
    y = codes[place] * anchor[2] + anchor[0]
    x = codes[place + step] * anchor[3] + anchor[1]
    height = np.float32(math.exp(np.float64(codes[place + 2 * step]))) * anchor[2]
    width = np.float32(math.exp(np.float64(codes[place + 3 * step]))) * anchor[3]
    box[0], box[2] = _clipped(x - width / TWO, right), _clipped(x + width / TWO, right)
    box[1], box[3] = _clipped(y - height / TWO, bottom), _clipped(y + height / TWO, bottom)
    return np.float32((box[2] - box[0]) * (box[3] - box[1]))


@_compiled
def _clipped(value: np.float32, limit: np.float32) -> np.float32:
    # NaN passes both comparisons and stays, for the caller to see.
    if value < ZERO:
        value = ZERO
    return limit if value > limit else value


@_compiled
def _is_free(
    box: NDArray[np.float32],
    area: np.float32,
    label: int,
    boxes: NDArray[np.float32],
    areas: NDArray[np.float32],
    labels: NDArray[np.int64],
    count: int,
    iou_threshold: float,
) -> bool:
    # torchvision, nms_kernel.cpp. Two boxes without area give 0 / 0, which is not above any threshold: both stay.
    for other in range(count):
        if labels[other] == label:
            width = max(min(box[2], boxes[other, 2]) - max(box[0], boxes[other, 0]), ZERO)
            height = max(min(box[3], boxes[other, 3]) - max(box[1], boxes[other, 1]), ZERO)
            shared = width * height
            if shared / (areas[other] + area - shared) > iou_threshold:
                return False
    return True
