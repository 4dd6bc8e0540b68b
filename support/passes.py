"""A pass on disk: how workers of one session share what one of them measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.arrays import load_arrays
from support.detections import Detections
from support.engine import Pass
from support.errors import WrongDataError
from support.heads import Heads
from support.timing import PassTiming

__all__ = ["read_heads", "read_pass", "write_heads", "write_pass"]

DETECTIONS, GOLDEN, FACTS = "detections.npz", "golden.npz", "pass.json"
KINDS = ("class", "box")


def write_heads(path: Path, heads: Heads) -> None:
    """Write raw heads to an ``.npz`` file, uncompressed: their bits are noise to a compressor."""
    arrays: dict[str, Any] = {
        f"{kind}_{level}": head
        for kind, levels in zip(KINDS, (heads.classes, heads.boxes), strict=True)
        for level, head in enumerate(levels)
    }
    np.savez(path, **arrays)


def read_heads(path: Path) -> Heads:
    """
    Read what `write_heads` wrote.

    Raises
    ------
    WrongDataError
        If the file is damaged or holds anything but heads.
    """
    arrays = load_arrays(path, remedy="write it again")
    levels = range(len(arrays) // len(KINDS))
    names = [[f"{kind}_{level}" for level in levels] for kind in KINDS]
    if sorted(arrays) != sorted([*names[0], *names[1]]) or any(array.dtype != np.float32 for array in arrays.values()):
        found = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise WrongDataError(f"{path} holds {found}", required="class and box heads of every level in float32")
    classes, boxes = (tuple(arrays[name] for name in level) for level in names)
    return Heads(classes, boxes)


def write_pass(folder: Path, measured: Pass) -> Mapping[str, Any]:
    """Write a pass into a new folder; returns facts for the manifest of the store."""
    folder.mkdir()
    measured.detections.save(folder / DETECTIONS)
    write_heads(folder / GOLDEN, measured.golden)
    facts = {"timing": measured.timing.as_json(), "padded_scored": measured.padded_scored}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return {"images": len(measured.detections.images)}


def read_pass(folder: Path) -> Pass:
    """Read what `write_pass` wrote."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Pass(
        detections=Detections.load(folder / DETECTIONS),
        timing=PassTiming.from_json(facts["timing"]),
        golden=read_heads(folder / GOLDEN),
        padded_scored=facts["padded_scored"],
    )
