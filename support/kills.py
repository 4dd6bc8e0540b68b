"""Kill the gate at random moments, or run it many times at once, and see that everything comes out right."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil

from support.dataset import CocoDataset, open_dataset
from support.errors import ContractViolationError, SuiteError, ToolError
from support.spec import load_spec

__all__ = ["Ended", "Gate", "kill_gates", "main", "run_gates_together", "write_world"]

CHECKOUT = Path(__file__).resolve().parent.parent
IMAGES = 16
#: Kills in a row after which a run is left alone; then a new store begins.
KILLS_IN_A_ROW = 6
#: Seconds an orderly end and the end of child processes may take on a busy machine.
PATIENCE = 120.0
#: What may hit a process: the kernel alone, the kernel with everything of the session, a user, a scheduler of jobs.
BLOWS: Mapping[str, float] = {"SIGKILL": 0.4, "SIGKILL to all": 0.2, "SIGINT": 0.2, "SIGTERM": 0.2}
#: Folders of the store that are empty when nothing runs.
PASSING = ("partial", "sessions")

# AP as the checkpoint itself has it on these images: torch 2.14.1 on a CPU with this suite's own post-processing.
SPEC = """
extends = "shapes_d0"
name = "shapes_{images}"
batch_sizes = [1]

[dataset]
root = {root}
image_count = {images}
annotation_digest = "{annotations}"
size_digest = "{sizes}"
source = "the first images of the kit"

[accuracy]
ladder_batch = 1
quoted_ap = 43.8723

# There is no second batch size to compare with.
[clauses.batch_invariance]
modes = ["results"]

[clauses.dataset_pins.limits.images]
value = {images}
unit = "images"
direction = "min"
source = "the first images of the kit"
date = 2026-11-24
"""


@dataclass(frozen=True)
class Ended:
    """
    How one run of the gate ended.

    `killed` tells what hit it, empty if nothing did; `verdicts` are the words and readings by clause, `output` what was
    printed.
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
    """

    def __init__(self, folder: Path, chip: str) -> None:
        self.folder, self.chip = folder, chip
        self.store, self.temp = folder / "store", folder / "tmp"
        self._mark = uuid.uuid4().hex
        self.temp.mkdir(parents=True)
        write_world(folder)

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
        junit, start = place / "junit.xml", time.monotonic()
        junit.unlink(missing_ok=True)
        with (place / "output.txt").open("w+b") as output:
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
        return Ended(killed, status, seconds, text, {} if killed else _verdicts(junit))

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


def write_world(folder: Path) -> None:
    """Write the first images of the kit into ``data``, and their spec as ``spec.toml``."""
    kit = load_spec("shapes_d0").dataset
    dataset = open_dataset(CHECKOUT / kit.root, kit).limited(IMAGES)
    root = folder / "data"
    (root / kit.images).mkdir(parents=True)
    for image in dataset.images:
        shutil.copy(image.path, root / kit.images)
    (root / kit.annotations).parent.mkdir(parents=True)
    (root / kit.annotations).write_text(json.dumps(dataset.truth.coco), encoding="utf-8")
    (folder / "spec.toml").write_text(_spec(dataset, root), encoding="utf-8")


def _spec(dataset: CocoDataset, root: Path) -> str:
    digests = {"annotations": dataset.annotation_digest, "sizes": dataset.size_digest}
    # A JSON string is a TOML string too.
    return SPEC.format(images=IMAGES, root=json.dumps(str(root)), **digests)


def _verdicts(junit: Path) -> dict[str, Any]:
    if not junit.is_file():
        return {}
    properties = ElementTree.parse(junit).getroot().iter("property")  # noqa: S314 - pytest's own file
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


def kill_gates(gate: Gate, kills: int, seed: int, say: Callable[[str], None]) -> str:
    """
    Kill the gate so many times, at moments spread evenly over a cold run, and let runs end in between.

    A run that ends before its moment, or that comes after some kills in a row, must give verdict, readings and store of
    a run nothing happened to; then the next store begins.

    Parameters
    ----------
    gate : Gate
        What to kill.
    kills : int
        How many times.
    seed : int
        Of the moments and blows.
    say : callable
        Told of every run.

    Returns
    -------
    summary : str
        Counts and times.

    Raises
    ------
    ContractViolationError
        If a run differs from the undisturbed one, or leaves something behind.
    ToolError
        If the undisturbed run does not end as it must, or a process outlives its session.
    """
    chance, start = random.Random(seed), time.monotonic()  # noqa: S311 - no secret
    _undisturbed(gate)
    gate.renew()
    # Once more: the first in a checkout also compiles, and its length would spread moments beyond the end of others.
    first = _undisturbed(gate)
    kept = gate.leftovers(), gate.entries()
    say(f"undisturbed: {first.seconds:.0f} s, {first.line}")
    done, in_a_row, completed, stores = Counter[str](), 0, 0, 0
    gate.renew()
    while done.total() < kills or in_a_row:
        spared = in_a_row == KILLS_IN_A_ROW or done.total() == kills
        ended = gate.run(killer=None if spared else _killer(chance, first.seconds))
        if ended.killed:
            done[ended.killed] += 1
            in_a_row += 1
            _require_no_verdict(ended, first)
            say(f"kill {done.total()} of {kills}: {ended.killed}")
        else:
            _require_same(gate, ended, first, kept)
            completed, stores, in_a_row = completed + 1, stores + 1, 0
            say(f"run {completed} completed after {ended.seconds:.0f} s: {ended.line}")
            gate.renew()
    blows = ", ".join(f"{count} {name}" for name, count in sorted(done.items()))
    return (
        f"{done.total()} kills ({blows}) of {gate.chip}, {completed} runs completed on {stores} stores in "
        f"{(time.monotonic() - start) / 60:.1f} min: 0 wrong verdicts, 0 stores to repair, nothing left behind"
    )


def run_gates_together(gate: Gate, sessions: int, say: Callable[[str], None]) -> str:
    """
    Run the gate in many sessions at once that begin with an empty store, then once more.

    Each must give verdict and readings of a run that was alone, and together they must leave its store.

    Parameters
    ----------
    gate : Gate
        What to run.
    sessions : int
        How many at once.
    say : callable
        Told of every run.

    Returns
    -------
    summary : str
        Counts and times.

    Raises
    ------
    ContractViolationError, ToolError
        As `kill_gates`.
    """
    start, first = time.monotonic(), _undisturbed(gate)
    kept = gate.leftovers(), gate.entries()
    say(f"undisturbed: {first.seconds:.0f} s, {first.line}")
    gate.renew()
    for ended in (*gate.run_together(sessions), gate.run()):
        _require_same(gate, ended, first, kept)
        say(f"{ended.seconds:.0f} s: {ended.line}")
    return (
        f"{sessions} sessions at once on one store of {gate.chip}, and one after them, in "
        f"{(time.monotonic() - start) / 60:.1f} min: 0 wrong verdicts, 0 stores to repair, nothing left behind"
    )


def _undisturbed(gate: Gate) -> Ended:
    first = gate.run()
    right = first.status == 0 or (gate.chip.startswith("sim:") and first.line.endswith("(not a release): simulated"))
    if not right or not first.verdicts:
        raise ToolError(f"the undisturbed run ended with {first.status}:\n{first.output[-4000:]}", required="accepted")
    unfinished = [name for name in gate.leftovers() if name.startswith("store")]
    if unfinished:
        raise ToolError(f"the undisturbed run left {', '.join(unfinished)}", required="nothing")
    return first


def _killer(chance: random.Random, seconds: float) -> Callable[[psutil.Process], str]:
    moment = time.monotonic() + chance.uniform(0, seconds)
    (blow,) = chance.choices(list(BLOWS), list(BLOWS.values()))

    def kill(process: psutil.Process) -> str:
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(max(0.0, moment - time.monotonic()))
            return ""
        family = [process, *(process.children(recursive=True) if blow.endswith("all") else ())]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.Signals[blow.split()[0]])
        return blow

    return kill


def _require_no_verdict(ended: Ended, first: Ended) -> None:
    # A signal may come when all is measured already; a status of 0 then belongs to a whole run. Its line need not be
    # the last: Python warns of a signal that it meets while it tidies up.
    if ended.status == 0 and first.line not in ended.output.splitlines():
        raise ContractViolationError(f"after {ended.killed} the status is 0:\n{ended.output[-2000:]}")


def _require_same(gate: Gate, ended: Ended, first: Ended, kept: tuple[frozenset[str], frozenset[str]]) -> None:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line ``python -m support.kills --kills=200``.

    Returns
    -------
    status : int
        0 if every kill was borne, 1 if not, 130 if interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m support.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--sessions", type=int, help="kill nothing, run so many at once (default: kill)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and blows (default: 0)")
    parser.add_argument("--chip", default="cpu", help="cpu, or a simulated chip such as sim:310P3 (default: cpu)")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="acceptance-kills-"))
    try:
        gate = Gate(folder, given.chip)
        if given.sessions is None:
            told = kill_gates(gate, given.kills, given.seed, _say)
        else:
            told = run_gates_together(gate, given.sessions, _say)
        print(told)  # noqa: T201 - the result
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        status = 130
    except (SuiteError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}\nkept: {folder}", file=sys.stderr)  # noqa: T201
        return 1
    else:
        status = 0
    shutil.rmtree(folder, ignore_errors=True)
    return status


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)  # noqa: T201 - progress of a command line


if __name__ == "__main__":
    sys.exit(main())
