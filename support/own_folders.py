"""Folders for temporary files that the next session clears away if this one is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from support.errors import NoSpaceError, ToolError

__all__ = ["OwnFolder"]

REMEDY = "set TMPDIR, or give --scratch=DIR, with a folder that can be written and has room"


class OwnFolder:
    """
    A new folder, kept as long as this process lives.

    It is locked while it is in use. Whoever makes the next one beside it removes those of the same kind whose lock is
    free, which killed processes have left.

    Parameters
    ----------
    kind : str
        Beginning of its name.
    parent : Path or None
        Where to make it; the folder for temporary files by default.
    remedy : str, optional
        What helps if it cannot be made.

    Raises
    ------
    NoSpaceError, ToolError
        If it cannot be made.
    """

    def __init__(self, kind: str, parent: Path | None = None, *, remedy: str = REMEDY) -> None:
        place = (parent or Path(tempfile.gettempdir())).resolve()
        for left in place.glob(f"{kind}*"):
            _clear(left)
        self.path, self._lock = _made(kind, place, remedy)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _made(kind: str, place: Path, remedy: str) -> tuple[Path, int | None]:
    while True:
        path = _new(kind, place, remedy)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another session took it for one that was left, in the moment before it is locked
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks: nobody else can tell either, so nobody clears anything away.
            os.close(lock)
            return path, None
        if path.exists():
            return path, lock
        os.close(lock)


def _new(kind: str, place: Path, remedy: str) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=kind, dir=place))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (NoSpaceError if full else ToolError)(
            f"no folder for temporary files can be made in {place}: {error.strerror}",
            remedy=remedy,
        ) from error


def _clear(path: Path) -> None:
    # Only our own, never through a link; what others have made cannot be removed anyway.
    with suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)
