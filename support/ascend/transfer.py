"""The file through which tensors pass between two processes."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.errors import NoSpaceError
from support.own_folders import OwnFolder

__all__ = ["PLACES", "Transfer"]

#: A file system in memory, where there is one.
MEMORY = Path("/dev/shm")  # noqa: S108 - in a new folder of our own
#: Of the file.
NAME = "tensors"
#: Room left for others.
RESERVE = 16 * 2**20
#: Places for inputs: one is filled while the device reads from the other.
PLACES = 2
#: Bytes of the mark behind the outputs.
MARK = 4


class Transfer:
    """
    A mapped file with room for two inputs, one set of outputs, and behind them the number of the call they are of.

    Its blocks are allocated before anything is mapped: a mapped file on a full disk would kill whoever touches it.

    Parameters
    ----------
    input_bytes : int
        Size of the input.
    output_bytes : sequence of int
        Size of every output.
    scratch : Path or None
        Where to put the file if memory has no room for it; the folder for temporary files by default.

    Attributes
    ----------
    outputs_start, mark_start : int
        Where in the file the outputs, one after the other, and the mark behind them begin.

    Raises
    ------
    NoSpaceError
        If there is room nowhere.
    """

    def __init__(self, input_bytes: int, output_bytes: Sequence[int], scratch: Path | None) -> None:
        self.input_bytes, self._output_bytes = input_bytes, tuple(output_bytes)
        self.outputs_start = PLACES * input_bytes
        self.mark_start = self.outputs_start + sum(output_bytes)
        self._folder, descriptor = _allocated(self.mark_start + MARK, scratch)
        self.path = self._folder.path / NAME
        try:
            self._memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)

    def input(self, place: int) -> NDArray[np.uint8]:
        """Bytes of an input."""
        return np.frombuffer(self._memory, np.uint8, self.input_bytes, place * self.input_bytes)

    def outputs(self) -> list[NDArray[np.uint8]]:
        """Bytes of every output; they stay as they are until the outputs of another call are written."""
        starts = np.cumsum([self.outputs_start, *self._output_bytes]).tolist()
        return [
            np.frombuffer(self._memory, np.uint8, size, start)
            for start, size in zip(starts, self._output_bytes, strict=False)
        ]

    @property
    def mark(self) -> int:
        """Number of the call whose outputs are here; 0 before the first, negative if they could not be written."""
        return int.from_bytes(self._memory[self.mark_start :], sys.byteorder, signed=True)

    def unlink(self) -> None:
        """Take the name away once both sides have mapped the file, so that no crash leaves it behind."""
        self._folder.close()


def _allocated(size: int, scratch: Path | None) -> tuple[OwnFolder, int]:
    places = [MEMORY, scratch or Path(tempfile.gettempdir())]
    free = {}
    for place in places:
        if not place.is_dir():
            continue
        free[place] = shutil.disk_usage(place).free
        if free[place] < size + RESERVE:
            continue
        # A session that is killed before both sides have mapped the file leaves it to the next one to clear away.
        folder = OwnFolder("acceptance-tensors-", place)
        descriptor = os.open(folder.path / NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.close(descriptor)
            folder.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            continue
        return folder, descriptor
    found = ", ".join(f"{place}: {room / 2**20:.0f} MiB free" for place, room in free.items()) or "no folder"
    raise NoSpaceError(
        f"no room for the tensors of one batch ({found})",
        required=f"{(size + RESERVE) / 2**20:.0f} MiB",
        remedy="give --scratch=DIR on a disk with room, or a container a larger /dev/shm (docker: --shm-size=2g)",
    )
