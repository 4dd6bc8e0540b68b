"""A folder for what one session measures, shared by its workers and gone when it ends."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from support.artifacts import disk_error

__all__ = ["SessionFolder"]


class SessionFolder:
    """
    Folder of the passes of one session.

    Measurements are never taken from an earlier session, so they do not belong into the store of artifacts. The
    controlling process holds a lock as long as it lives; a folder whose lock is free was left by a killed session.

    Parameters
    ----------
    path : Path
        The folder.
    lock : FileLock or None
        Held by the owner; None in a worker, which neither locks nor removes.
    """

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def opened(cls, root: Path) -> SessionFolder:
        """
        Open a new folder under `root`, clearing away what killed sessions left.

        Raises
        ------
        NoSpaceError, BuildFailedError
            If `root` is full or cannot be written.
        """
        folder = root / "sessions"
        path = folder / uuid.uuid4().hex
        lock = FileLock(path.with_suffix(".lock"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*.lock"):
                _clear(left)
            lock.acquire()
        except OSError as error:
            raise disk_error(error, "opening a session", root) from error
        return cls(path, lock)

    @classmethod
    def joined(cls, path: str) -> SessionFolder:
        """Use the folder of the controlling process."""
        return cls(Path(path), None)

    def close(self) -> None:
        """Remove the folder if it is ours."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock = None


def _clear(lock_file: Path) -> None:
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    shutil.rmtree(lock_file.with_suffix(""), ignore_errors=True)
    lock.release()
    lock_file.unlink(missing_ok=True)
