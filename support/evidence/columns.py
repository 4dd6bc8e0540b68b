"""Detections as a bundle keeps them: the columns that scoring and matching need, compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.arrays import load_arrays
from support.detections import Detections
from support.errors import WrongDataError

__all__ = ["load_columns", "save_columns"]

COLUMNS = ("images", "image_ids", "boxes", "scores", "category_ids")


def save_columns(path: Path, detections: Detections) -> None:
    """Write the detections of a pass, without their anchors, which nothing but decoding knows."""
    np.savez_compressed(path, **{name: getattr(detections, name) for name in COLUMNS})


def load_columns(path: Path) -> Detections:
    """
    Read what `save_columns` wrote; anchors are 0.

    Raises
    ------
    WrongDataError
        If the file is damaged, unpacks to more than any pass has, or does not hold exactly these columns.
    """
    columns = load_arrays(path, remedy="make the bundle again")
    if sorted(columns) != sorted(COLUMNS):
        raise WrongDataError(f"{path} holds {sorted(columns)}", required=f"exactly {sorted(COLUMNS)}")
    try:
        return Detections(**columns, anchors=np.zeros(columns["image_ids"].shape, np.int32))
    except WrongDataError as error:
        raise WrongDataError(f"{path}: {error.found}", required=error.required) from error
