"""The file through which tensors pass between two processes."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.errors import NoSpaceError

__all__ = ["Transfer"]

#: A file system in memory, where there is one.
MEMORY = Path("/dev/shm")  # noqa: S108 - the file is made by mkstemp
#: Room left for others.
RESERVE = 16 * 2**20
#: Places for outputs: one is decoded while the device fills the other.
SLOTS = 2


class Transfer:
    """
    A mapped file with room for one input and two sets of outputs.

    Its blocks are allocated before anything is mapped: a mapped file on a full disk would kill whoever touches it.

    Parameters
    ----------
    input_bytes : int
        Size of the input.
    output_bytes : sequence of int
        Size of every output.
    scratch : Path or None
        Where to put the file if memory has no room for it; the folder for temporary files by default.

    Raises
    ------
    NoSpaceError
        If there is room nowhere.
    """

    def __init__(self, input_bytes: int, output_bytes: Sequence[int], scratch: Path | None) -> None:
        self.input_bytes = input_bytes
        starts = np.cumsum([input_bytes, *(list(output_bytes) * SLOTS)])
        sizes = list(output_bytes) * SLOTS
        pairs = [(int(start), size) for start, size in zip(starts, sizes, strict=False)]
        count = len(output_bytes)
        self.slots = [pairs[slot * count : (slot + 1) * count] for slot in range(SLOTS)]
        self.path, descriptor = _allocated(int(starts[-1]), scratch)
        try:
            self._memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)

    def input(self) -> NDArray[np.uint8]:
        """Bytes of the input."""
        return np.frombuffer(self._memory, np.uint8, self.input_bytes)

    def outputs(self, slot: int) -> list[NDArray[np.uint8]]:
        """Bytes of the outputs in a slot; they stay as they are until the slot is filled again."""
        return [np.frombuffer(self._memory, np.uint8, size, start) for start, size in self.slots[slot]]

    def unlink(self) -> None:
        """Take the name away once both sides have mapped the file, so that no crash leaves it behind."""
        self.path.unlink(missing_ok=True)


def _allocated(size: int, scratch: Path | None) -> tuple[Path, int]:
    places = [MEMORY, scratch or Path(tempfile.gettempdir())]
    free = {}
    for place in places:
        if not place.is_dir():
            continue
        free[place] = shutil.disk_usage(place).free
        if free[place] < size + RESERVE:
            continue
        descriptor, name = tempfile.mkstemp(prefix="acceptance-tensors-", dir=place)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.close(descriptor)
            Path(name).unlink()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            continue
        return Path(name), descriptor
    found = ", ".join(f"{place}: {room / 2**20:.0f} MiB free" for place, room in free.items()) or "no folder"
    raise NoSpaceError(
        f"no room for the tensors of one batch ({found})",
        required=f"{(size + RESERVE) / 2**20:.0f} MiB",
        remedy="give --scratch=DIR on a disk with room, or a container a larger /dev/shm (docker: --shm-size=2g)",
    )
