"""Detections as a bundle keeps them: the columns that scoring and matching need, compressed."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from support.detections import Detections
from support.errors import WrongDataError

__all__ = ["load_columns", "save_columns"]

COLUMNS = ("images", "image_ids", "boxes", "scores", "category_ids")
#: Bytes of arrays we agree to unpack; a pass of 5,000 images with 100 boxes each has 16 MB.
MAX_BYTES = 2**30


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
    try:
        data = path.read_bytes()
        _require_small(path, data)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise WrongDataError(f"{path} is damaged: {error}", remedy="make the bundle again") from error
    if sorted(columns) != sorted(COLUMNS):
        raise WrongDataError(f"{path} holds {sorted(columns)}", required=f"exactly {sorted(COLUMNS)}")
    try:
        return Detections(**columns, anchors=np.zeros(columns["image_ids"].shape, np.int32))
    except WrongDataError as error:
        raise WrongDataError(f"{path}: {error.found}", required=error.required) from error


def _require_small(path: Path, data: bytes) -> None:
    # Few bytes can unpack to very many, and a bundle may come from anybody.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise WrongDataError(f"{path} unpacks to {size} bytes", required=f"at most {MAX_BYTES}")
