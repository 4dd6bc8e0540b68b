"""External tools as child processes that never outlive the step that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from support.errors import SuiteTimeoutError, ToolError

__all__ = ["Finished", "run_tool"]

#: Characters of a tool's output that an error quotes: its end, where the cause is.
QUOTED = 600


@dataclass(frozen=True)
class Finished:
    """
    A tool that ended.

    `status` is its exit status, negative for a signal. `output` holds what it wrote to stdout and stderr, in order.
    """

    command: tuple[str, ...]
    status: int
    output: str
    seconds: float

    @property
    def tail(self) -> str:
        """The last characters of the output, for an error message."""
        return self.output.strip()[-QUOTED:]


def run_tool(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float,
    cwd: Path | None = None,
    log: Path | None = None,
) -> Finished:
    """
    Run a tool to its end, whatever its exit status.

    The tool is the leader of a process group. When time is up, or when this process is interrupted, the whole group is
    killed, so that compilers started by a compiler do not go on.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; no shell sees them.
    env : mapping of str to str
        The whole environment of the tool.
    timeout : float
        Seconds it may take.
    cwd : Path, optional
        Its working directory.
    log : Path, optional
        File that keeps its output; a temporary file otherwise.

    Raises
    ------
    ToolError
        If it cannot be started.
    SuiteTimeoutError
        If it takes too long; the message ends with its last lines.
    """
    start = time.monotonic()
    with log.open("wb+") if log else tempfile.TemporaryFile() as output:
        # Into a file, because a pipe that nobody drains stops its writer.
        process = _started(command, env, cwd, output.fileno())
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            last = _text(output.fileno()).strip()[-QUOTED:]
            raise SuiteTimeoutError(
                f"{Path(command[0]).name} had not ended after {timeout:g} s: {last}",
                remedy="look for a hung device or tool; the limits are in the spec's [timeouts]",
            ) from None
        except BaseException:
            _kill(process)
            raise
        return Finished(tuple(command), status, _text(output.fileno()), time.monotonic() - start)


def _started(command: Sequence[str], env: Mapping[str, str], cwd: Path | None, output: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(command),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(
            f"{command[0]} cannot be started: {error.strerror or error}",
            remedy="check that it is installed for this host",
        ) from error


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(file: int) -> str:
    size = os.fstat(file).st_size
    return os.pread(file, size, 0).decode("utf-8", "replace")
