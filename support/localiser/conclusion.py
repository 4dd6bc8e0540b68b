"""From what was measured to the one place to look at first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from support.localiser.heads import head_suspect
from support.localiser.record import ROUNDING, BlockError, BlockSearch, HeadError, StageError

__all__ = ["named", "suspect_of"]

#: Blocks named in one sentence.
SHOWN = 3
HEAD = re.compile(r"(class|box) head (P\d+) (.+)")
UNKNOWN = "not found: nothing that could be compared differs, and the notes tell what could not"


def suspect_of(
    stages: Sequence[StageError],
    heads: Sequence[HeadError],
    blocks: BlockSearch | None,
    half_blocks: BlockSearch | None,
    *,
    departure: str = "",
    group: str = "",
) -> str:
    """
    Say where to look first.

    A block that is wrong by itself comes first, since it explains the heads. If there is none, the cause lies outside
    the graph: before it where its results differ all the same, behind it where they do not.

    Parameters
    ----------
    stages, heads, blocks, half_blocks
        As in `support.localiser.record.Localisation`; what is empty or None was not measured.
    departure : str
        Where the graph stops being the network, if it does.
    group : str
        The class, object size or orientation that loses most, if one does.
    """
    where = departure or _wrong_block(blocks)
    red = next((stage.stage for stage in stages if stage.is_red), "")
    # A candidate that no stage here made is no stage to be told from others.
    stage = f"stage {red}, " if red and len(stages) > 1 else ""
    if where:
        return f"{stage}{where}"
    if blocks is not None:
        if not (red or head_suspect(heads)) and (heads or stages):
            return _behind(f"the edit of {blocks.pads_undone} Pads" if blocks.pads_undone else "", group)
        return _around(bool(heads or stages), half_blocks)
    found = ", ".join(filter(None, (head_suspect(heads), group)))
    return f"{stage}{found}" if found else UNKNOWN


def _wrong_block(blocks: BlockSearch | None) -> str:
    if blocks is None:
        return ""
    if blocks.standing_out:
        worst = blocks.standing_out[0]
        how = f"wrong by itself (relative error {worst.local:.2g})" + (f", {worst.wiring}" if worst.wiring else "")
        return f"{named(blocks.standing_out)}: {how}"
    median = float(np.median([error.local for error in blocks.errors]))
    if median > ROUNDING:
        return f"no single block: half of them are off by more than {median:.2g}, as from another precision or epsilon"
    return ""


def _behind(*suspects: str) -> str:
    places = [*filter(None, suspects), "decoding", "categories", "geometry"]
    return (
        f"behind the network, whose outputs on the golden images are right: {', '.join(places)}; see the worst images"
    )


def _around(compared: bool, half_blocks: BlockSearch | None) -> str:
    good = "every block of the deployed ONNX is right by itself"
    if not compared:
        return f"not the graph: {good}; the outputs of the candidate could not be compared"
    if half_blocks is None:
        return f"not the graph but what runs it (compiler, runtime, device, batching): {good}"
    if half_blocks.standing_out:
        return f"precision: {good} in float32, but in emulated half precision not {named(half_blocks.standing_out)}"
    worst = half_blocks.worst
    rounding = f"also in emulated half precision (largest {worst.local:.2g}, {worst.block})"
    return f"the compilation or the device: {good}, {rounding}"


def named(errors: Iterable[BlockError]) -> str:
    """
    Name blocks, those of one part of a head at several levels once: the levels share its convolutions.

    Examples
    --------
    >>> titles = ("box head P3 prediction", "stem", "box head P4 prediction")
    >>> named(BlockError(block=title, local=1, chained=1) for title in titles)
    'box head prediction (P3, P4), stem'
    """
    levels: dict[str, list[str]] = {}
    for error in errors:
        match = HEAD.fullmatch(error.block)
        part, level = (f"{match[1]} head {match[3]}", [match[2]]) if match else (error.block, [])
        levels.setdefault(part, []).extend(level)
    titles = [f"{part} ({', '.join(sorted(found))})" if found else part for part, found in levels.items()]
    rest = len(titles) - SHOWN
    return ", ".join([*titles[:SHOWN], *([f"{rest} more"] if rest > 0 else [])])
