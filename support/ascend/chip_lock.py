"""One session a chip: a lock that every user of the host sees."""

from __future__ import annotations

import hashlib
import json
import os
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
        _require_folder(self._folder)
        # The name comes from the hardware; it must not lead out of the folder.
        name = hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        self._holder = self._folder / f"{name}.json"
        self._lock = FileLock(self._folder / f"{name}.lock", mode=0o666)
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

    def _write_holder(self) -> None:
        facts = {"pid": os.getpid(), "owner": self._owner[:OWNER_LENGTH], "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):
            self._holder.unlink()
        with suppress(OSError):
            # A new file, never one that somebody else has put or linked there.
            descriptor = os.open(self._holder, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(facts, file)

    def _busy(self) -> DeviceBusyError:
        try:
            facts = json.loads(self._holder.read_text(encoding="utf-8"))
            who = f"process {facts['pid']} since {facts['since']} ({facts['owner']})"
        except (OSError, ValueError, KeyError, TypeError):
            who = "a process that left no name"
        return DeviceBusyError(
            f"another session of this suite uses the chip {self._identity}: {who}",
            remedy="wait for it with --wait-device=SECONDS, or choose another --device-id",
        )


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
        folder.chmod(SHARED)
    except FileExistsError:
        pass
    except OSError as error:
        raise ToolError(
            f"{folder} cannot be made: {error}", remedy="set TMPDIR to a folder that can be written"
        ) from error
    if folder.is_symlink() or not folder.is_dir():
        raise ToolError(f"{folder} is no folder", remedy="remove it: locks of chips are kept there")
