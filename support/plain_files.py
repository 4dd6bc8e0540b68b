"""Reading files that may be anything: never a pipe, a device or more bytes than make sense."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["read_plain"]


def read_plain(path: Path, most: int) -> bytes:
    """
    Read a whole file.

    Parameters
    ----------
    path : Path
        A plain file, or a link to one. A pipe would be waited for, and a device may never end.
    most : int
        Bytes that such a file has at most.

    Raises
    ------
    OSError
        If it is no plain file, is larger, or cannot be read.
    """
    # Not to wait for whoever writes into a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is a descriptor
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, {most} are the most", str(path))
        # No more than it had: room for all that is asked for is taken before anything is read.
        return file.read(found.st_size)
