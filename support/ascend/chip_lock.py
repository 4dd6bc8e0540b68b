"""One session a chip: a lock that every user of the host sees."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from support.errors import DeviceBusyError, ToolError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ChipLock"]

FOLDER = "ascend-acceptance-locks"
#: Like the folder for temporary files itself: everybody may add, nobody may remove what belongs to others.
SHARED = 0o1777
OWNER_LENGTH = 200


class ChipLock:
    """
    Keep a chip to this process, as a context manager.

    The lock belongs to the operating system and dies with its holder.

    Parameters
    ----------
    identity : str
        What identifies the piece of hardware.
    owner : str
        Told to whoever waits for it.
    wait_seconds : float
        How long to wait for another holder.
    folder : Path, optional
        Where the locks are; the same for all users by default.
    """

    def __init__(self, identity: str, *, owner: str, wait_seconds: float, folder: Path | None = None) -> None:
        self._identity, self._owner, self._wait = identity, owner, wait_seconds
        self._folder = folder or Path(tempfile.gettempdir()) / FOLDER

    def __enter__(self) -> Self:
        """
        Wait for the chip.

        Raises
        ------
        DeviceBusyError
            If somebody else still has it; says who.
        ToolError
            If locks cannot be kept in the folder.
        """
        _require_folder(self._folder)
        # The name comes from the hardware; it must not lead out of the folder.
        self._name = hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        path = self._folder / f"{self._name}.lock"
        if path.is_symlink():
            raise ToolError(f"{path} is a link", remedy="remove it: somebody has put it in the place of a lock")
        self._lock = FileLock(path, mode=0o666)
        try:
            self._lock.acquire(timeout=self._wait)
        except Timeout:
            raise self._busy() from None
        except OSError as error:
            raise ToolError(
                f"{self._folder} cannot be written: {error}", remedy="remove it, or repair its mode"
            ) from error
        self._write_holder()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._holder.unlink()
        self._lock.release()

    @property
    def _holder(self) -> Path:
        """One file for each user, because nobody can remove what a crashed session of somebody else has left."""
        return self._folder / f"{self._name}.{os.getuid()}.json"

    def _write_holder(self) -> None:
        facts = {"pid": os.getpid(), "owner": self._owner[:OWNER_LENGTH], "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):
            self._holder.unlink()
        with suppress(OSError):
            # A new file, never one that somebody else has put or linked there.
            descriptor = os.open(self._holder, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                # Readable for whoever waits, whatever the umask is.
                os.fchmod(descriptor, 0o644)
                json.dump(facts, file)

    def _busy(self) -> DeviceBusyError:
        try:
            facts = json.loads(self._last_holder().read_text(encoding="utf-8"))
            who = f"process {facts['pid']} since {facts['since']} ({facts['owner']})"
        except (OSError, ValueError, KeyError, TypeError):
            who = "a process that left no name"
        return DeviceBusyError(
            f"another session of this suite uses the chip {self._identity}: {who}",
            required="one session at a time on a chip",
            remedy="wait for it with --wait-device=SECONDS, or choose another --device-id",
        )

    def _last_holder(self) -> Path:
        written = {path: path.lstat() for path in self._folder.glob(f"{self._name}.*.json")}
        files = [path for path, found in written.items() if stat.S_ISREG(found.st_mode)]
        return max(files, key=lambda path: written[path].st_mtime)


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        if folder.is_symlink() or folder.exists():
            raise _no_folder(folder) from error
        raise ToolError(
            f"{folder} cannot be made: {error}", remedy="set TMPDIR to a folder that can be written"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise _no_folder(folder)
    if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) != SHARED:
        folder.chmod(SHARED)


def _no_folder(folder: Path) -> ToolError:
    return ToolError(f"{folder} is no folder", remedy="remove it: locks of chips are kept there")
