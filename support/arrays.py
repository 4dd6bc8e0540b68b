"""Reading archives of arrays that may come from anybody."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.errors import WrongDataError
from support.plain_files import read_plain

__all__ = ["MAX_BYTES", "load_arrays"]

#: Bytes of arrays we agree to unpack; a pass of 5,000 images with 100 boxes each has 20 MB.
MAX_BYTES = 2**30


def load_arrays(path: Path, *, remedy: str) -> Mapping[str, NDArray[Any]]:
    """
    Read every array of an ``.npz`` file, running no code in it.

    Raises
    ------
    WrongDataError
        If it is damaged, is no plain file, or unpacks to more than any of ours.
    """
    try:
        data = read_plain(path, MAX_BYTES)
        _require_small(path, data)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except WrongDataError:
        raise
    except Exception as error:  # numpy and zipfile raise whatever the damaged field leads to
        raise WrongDataError(f"{path} is damaged: {error}", remedy=remedy) from error


def _require_small(path: Path, data: bytes) -> None:
    # Few bytes can unpack to very many.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise WrongDataError(f"{path} unpacks to {size} bytes", required=f"at most {MAX_BYTES}")
