"""One gate to try, with its own data, store and folder for temporary files, and how its runs end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil

from support.errors import ContractViolationError, ToolError
from support.trials.world import CHECKOUT, write_world

__all__ = ["Ended", "Gate", "Kept", "Say", "require_same", "undisturbed"]

#: Seconds an orderly end and the end of child processes may take on a busy machine.
PATIENCE = 120.0
#: Folders of the store that are empty when nothing runs.
PASSING = ("partial", "sessions")

#: Leftovers and artifacts of an undisturbed run.
Kept = tuple[frozenset[str], frozenset[str]]
#: Told of every run.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """
    How one run of the gate ended.

    `killed` tells what hit it, empty if nothing did; `verdicts` are the words and readings by clause, as far as they
    were written, `output` what was printed.
    """

    killed: str
    status: int
    seconds: float
    output: str
    verdicts: Mapping[str, Any]

    @property
    def line(self) -> str:
        """The last line, which carries the verdict."""
        return (self.output.rstrip().splitlines() or [""])[-1]


class Gate:
    """
    The gate of one batch size and 16 images, with its own data, store and folder for temporary files.

    Parameters
    ----------
    folder : Path
        Where everything of it lies.
    chip : str
        Value of ``--chip``.
    whole_kit : bool
        Whether it has all batch sizes and images of the kit instead.
    """

    def __init__(self, folder: Path, chip: str, *, whole_kit: bool = False) -> None:
        self.folder, self.chip = folder, chip
        self.store, self.temp = folder / "store", folder / "tmp"
        self._mark = uuid.uuid4().hex
        self.temp.mkdir(parents=True)
        write_world(folder, whole=whole_kit)

    def run(self, *, killer: Callable[[psutil.Process], str] | None = None) -> Ended:
        """
        Run the gate; `killer` is called with its process, hits it, and says how.

        Raises
        ------
        ToolError
            If a process of the run outlives it.
        """
        ended = self._run(self.folder / "run", killer)
        self._require_all_gone(ended.killed)
        return ended

    def run_together(self, sessions: int) -> list[Ended]:
        """Run the gate in so many sessions at once on the same store, with the errors of `run`."""
        places = [self.folder / f"session-{number}" for number in range(sessions)]
        with ThreadPoolExecutor(sessions) as pool:
            ended = list(pool.map(self._run, places))
        self._require_all_gone("")
        return ended

    def _run(self, place: Path, killer: Callable[[psutil.Process], str] | None = None) -> Ended:
        place.mkdir(exist_ok=True)
        # Beside the folder of the report, whose disk may be harmed.
        junit, printed, start = place.with_suffix(".xml"), place.with_suffix(".txt"), time.monotonic()
        junit.unlink(missing_ok=True)
        with printed.open("w+b") as output:
            process = self._started(place, junit, output.fileno())
            try:
                killed = killer(psutil.Process(process.pid)) if killer else ""
                status = process.wait(PATIENCE if killed else None)
            finally:
                process.kill()
                process.wait()
            seconds = time.monotonic() - start
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
        return Ended(killed, status, seconds, text, _verdicts(junit))

    def leftovers(self) -> frozenset[str]:
        """List what lies where nothing should stay: unfinished artifacts, sessions, temporary files."""
        paths = [path for name in PASSING for path in (self.store / name).glob("*")]
        paths += self.folder.glob("*/.*")  # evidence that is being written
        return frozenset(str(path.relative_to(self.folder)) for path in [*paths, *self.temp.iterdir()])

    def entries(self) -> frozenset[str]:
        """Names of all artifacts of the store, and of their files."""
        files = (path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file())
        return frozenset(str(path) for path in files if path.parts[0] not in (*PASSING, "locks", "logs"))

    def renew(self) -> None:
        """Begin with an empty store."""
        shutil.rmtree(self.store, ignore_errors=True)

    def _started(self, place: Path, junit: Path, output: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "acceptance", f"--chip={self.chip}"]
        command += [f"--spec={self.folder / 'spec.toml'}", f"--artifacts={self.store}", f"--junitxml={junit}"]
        command += [f"--report-dir={place / 'report'}"]
        env = {**os.environ, "TMPDIR": str(self.temp), "ACCEPTANCE_KILLS": self._mark, "COLUMNS": "200"}
        return subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell may have had Ctrl-C ignored for what it put into the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def _require_all_gone(self, killed: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while alive := self.processes():
            if time.monotonic() > deadline:
                found = "; ".join(" ".join(process.cmdline())[:100] for process in alive)
                raise ToolError(f"alive {PATIENCE:g} s after {killed or 'the end'}: {found}", required="no process")
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """Everything that descends from a run, also what left its session."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("ACCEPTANCE_KILLS") == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def _verdicts(junit: Path) -> dict[str, Any]:
    try:
        properties = ElementTree.parse(junit).getroot().iter("property")  # noqa: S314 - pytest's own file
    except (OSError, ElementTree.ParseError):  # of a run that was killed
        return {}
    found = [json.loads(item.get("value", "")) for item in properties if item.get("name") == "clause_verdict"]
    # Times are never the same twice.
    return {
        f"{item['clause']} {item['batch']}": (
            item["word"],
            item["reason"],
            [] if item["clause"].startswith("throughput_") else item["readings"],
        )
        for item in found
    }


def undisturbed(gate: Gate, say: Say) -> tuple[Ended, Kept]:
    """
    Run the gate twice from nothing and with nothing in its way, and leave its store empty.

    Returns
    -------
    first : Ended
        How the second run ended, what all later ones are compared with. The first run in a checkout also compiles.
    kept : Kept
        What it left.

    Raises
    ------
    ToolError
        If a run does not end as it must, or leaves something unfinished.
    """
    for _ in range(2):
        gate.renew()
        first = gate.run()
        _require_accepted(gate, first)
    say(f"undisturbed: {first.seconds:.0f} s, {first.line}")
    kept = gate.leftovers(), gate.entries()
    gate.renew()
    return first, kept


def _require_accepted(gate: Gate, first: Ended) -> None:
    right = first.status == 0 or (gate.chip.startswith("sim:") and first.line.endswith("(not a release): simulated"))
    if not right or not first.verdicts:
        raise ToolError(f"the undisturbed run ended with {first.status}:\n{first.output[-4000:]}", required="accepted")
    unfinished = [name for name in gate.leftovers() if name.startswith("store")]
    if unfinished:
        raise ToolError(f"the undisturbed run left {', '.join(unfinished)}", required="nothing")


def require_same(gate: Gate, ended: Ended, first: Ended, kept: Kept) -> None:
    """Raise `ContractViolationError` if a run ended unlike the first, or has left or lost anything."""
    if (ended.status, ended.line, ended.verdicts) != (first.status, first.line, first.verdicts):
        changed = [name for name in first.verdicts if ended.verdicts.get(name) != first.verdicts[name]]
        raise ContractViolationError(
            f"status {ended.status}, {ended.line!r}, {len(changed)} clauses differ: {', '.join(changed[:5])}\n"
            f"{ended.output[-4000:]}",
            required=f"status {first.status}, {first.line!r}, as the undisturbed run",
            remedy=f"look into {gate.folder}",
        )
    # Libraries leave some files of their own among the temporary ones; an undisturbed run has the same.
    others = sorted((gate.leftovers() - kept[0]) | (gate.entries() ^ kept[1]))
    if others:
        raise ContractViolationError(
            f"left behind or lost: {', '.join(others)}", required="as after an undisturbed run"
        )
