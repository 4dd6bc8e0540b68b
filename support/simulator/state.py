"""What runs on a simulated device, for its own npu-smi to show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["DeviceState"]


class DeviceState:
    """
    State of one device, as files that every process of the simulated host sees.

    Parameters
    ----------
    folder : Path
        Of the simulated host.
    number : int
        Device id.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder / "state" / str(number)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._client: Path | None = None

    def opened(self, client: int) -> None:
        """Note the process that holds the device."""
        self._client = self._folder / f"pid-{client}"
        self._client.touch()

    def closed(self) -> None:
        """Note that it is free again."""
        if self._client is not None:
            self._client.unlink(missing_ok=True)
            self._client = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a run, and show the device at work while it lasts."""
        marker = self._folder / f"running-{os.getpid()}"
        marker.touch()
        try:
            yield
        finally:
            marker.unlink(missing_ok=True)
            (self._folder / "runs").write_text(str(self.runs + 1), encoding="ascii")

    @property
    def runs(self) -> int:
        """Runs since the host was made."""
        try:
            return int((self._folder / "runs").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    @property
    def at_work(self) -> bool:
        """Whether a run is going on; that of a process that was killed is not."""
        return bool(self._alive("running"))

    @property
    def clients(self) -> tuple[int, ...]:
        """Processes that hold the device; one that was killed holds it no longer."""
        return self._alive("pid")

    def _alive(self, kind: str) -> tuple[int, ...]:
        pids = sorted(int(path.name.partition("-")[2]) for path in self._folder.glob(f"{kind}-*"))
        return tuple(pid for pid in pids if _alive(pid))

    def vanish(self) -> None:
        """Fall off the bus."""
        (self._folder / "vanished").touch()

    @property
    def vanished(self) -> bool:
        """Whether it fell off the bus."""
        return (self._folder / "vanished").exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
