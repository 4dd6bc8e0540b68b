"""Harm files and disks under a running gate, and see that it says so and that the next run is right."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from support.errors import ContractViolationError, NoDeviceError
from support.trials.gate import PASSING, Ended, Gate, Kept, Say, require_same, undisturbed

__all__ = ["DISKS", "FILES", "Harm", "harm_gates", "unharmed_or_undetermined"]

#: From sched.h: mounts of this process and its children are theirs alone, and go with them.
CLONE_NEWNS = 0x00020000
#: Room on a disk that is not full.
ROOM = "4g"
UNHARMED = "as if nothing had happened"


@dataclass(frozen=True)
class Harm:
    """
    Something that befalls files of a gate while it runs.

    Parameters
    ----------
    name : str
        What happens.
    strike : callable
        Does it to the gate, drawing what it needs; false as long as there is nothing to strike.
    disk : str
        Folder of the gate that lies on a disk of its own, if it takes one.
    may_reject : bool
        Whether it changes the model under test itself, which the gate may then reject.
    """

    name: str
    strike: Callable[[Gate, random.Random], bool]
    disk: str = ""
    may_reject: bool = False


# --- files


def _images(gate: Gate) -> list[Path]:
    return sorted(path for path in (gate.folder / "data").rglob("*") if path.suffix != ".json" and path.is_file())


def _annotations(gate: Gate) -> list[Path]:
    return sorted((gate.folder / "data").rglob("*.json"))


def _spec(gate: Gate) -> list[Path]:
    return [gate.folder / "spec.toml"]


def _stored(gate: Gate) -> list[Path]:
    found = (path for path in gate.store.rglob("*") if path.is_file())
    return sorted(path for path in found if path.relative_to(gate.store).parts[0] not in (*PASSING, "locks"))


def _vanish(path: Path, _: random.Random) -> None:
    path.unlink()


def _cut(path: Path, _: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(place := chance.randrange(path.stat().st_size))
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << chance.randrange(8))]))


def _become_another(path: Path, chance: random.Random) -> None:
    shutil.copy(chance.choice([other for other in path.parent.iterdir() if other != path]), path)


def _to_one(
    files: Callable[[Gate], list[Path]], change: Callable[[Path, random.Random], None]
) -> Callable[[Gate, random.Random], bool]:
    def strike(gate: Gate, chance: random.Random) -> bool:
        try:
            change(chance.choice(files(gate)), chance)
        except (OSError, IndexError, ValueError):  # there is none yet, it has gone already, or it is empty
            return False
        return True

    return strike


def _emptied(folder: Callable[[Gate], Path]) -> Callable[[Gate, random.Random], bool]:
    def strike(gate: Gate, _: random.Random) -> bool:
        found = list(folder(gate).glob("*"))
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return bool(found)

    return strike


FILES: tuple[Harm, ...] = (
    Harm("an image vanishes", _to_one(_images, _vanish)),
    Harm("an image is cut short", _to_one(_images, _cut)),
    Harm("an image becomes another", _to_one(_images, _become_another)),
    Harm("the annotations vanish", _to_one(_annotations, _vanish)),
    Harm("the annotations are cut short", _to_one(_annotations, _cut)),
    Harm("the spec vanishes", _to_one(_spec, _vanish)),
    Harm("the spec is cut short", _to_one(_spec, _cut)),
    Harm("a file of the store vanishes", _to_one(_stored, _vanish)),
    Harm("a file of the store is cut short", _to_one(_stored, _cut)),
    Harm("a bit of the store flips", _to_one(_stored, _flip), may_reject=True),
    Harm("the store is emptied", _emptied(lambda gate: gate.store)),
    Harm("the temporary files vanish", _emptied(lambda gate: gate.temp)),
)


# --- disks


def _full(disk: str) -> Callable[[Gate, random.Random], bool]:
    def strike(gate: Gate, _: random.Random) -> bool:
        used = shutil.disk_usage(gate.folder / disk).used
        return _mount(gate.folder / disk, f"remount,size={max(used, 4096)}")

    return strike


def _read_only(disk: str) -> Callable[[Gate, random.Random], bool]:
    # Refused as long as a file is open for writing.
    return lambda gate, _: _mount(gate.folder / disk, "remount,ro")


DISKS: tuple[Harm, ...] = tuple(
    Harm(f"the disk of {what} {becomes}", strike(disk), disk)
    for disk, what in (("store", "the store"), ("tmp", "temporary files"), ("run", "the report"))
    for becomes, strike in (("fills up", _full), ("becomes read-only", _read_only))
)


def _mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _own_mounts() -> None:
    """Let mounts of this process be seen by it and its children alone."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise NoDeviceError(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=True)  # noqa: S607 - of the system


@contextlib.contextmanager
def _on_disk_of_its_own(gate: Gate, disk: str) -> Iterator[None]:
    """Put a folder of the gate on a disk of its own, which is healthy again after `strike`; files outlive neither."""
    if not disk:
        yield
        return
    folder = gate.folder / disk
    folder.mkdir(exist_ok=True)
    if not _mount(folder, f"size={ROOM}"):
        raise NoDeviceError(f"{folder}: no disk can be mounted")
    try:
        yield
    finally:
        command = ["umount", "--lazy", str(folder)]
        subprocess.run(command, capture_output=True, check=False)


# --- trials


def harm_gates(gate: Gate, harms: int, seed: int, say: Say) -> str:
    """
    Harm the gate so many times, one way after the other, at random moments of a run from nothing; then run it again.

    The run that is harmed must be undetermined for a reason that it names, or end as if nothing had happened. What is
    the user's, data, spec and disk, is then put right, and nothing else: the next run must give verdict, readings and
    store of a run nothing happened to.

    Parameters
    ----------
    gate : Gate
        What to harm.
    harms : int
        How many times.
    seed : int
        Of the moments and places.
    say : callable
        Told of every run.

    Returns
    -------
    summary : str
        Counts and times.

    Raises
    ------
    ContractViolationError
        If a harmed run ends otherwise, or the run after it differs from the undisturbed one or lacks something.
    ToolError
        As `support.trials.kills.kill_gates`.
    """
    chance, start, ends = random.Random(seed), time.monotonic(), Counter[str]()  # noqa: S311 - no secret
    first, kept = undisturbed(gate, say)
    shutil.copytree(gate.folder / "data", gate.folder / "spare")
    shutil.copy(gate.folder / "spec.toml", gate.folder / "spare.toml")
    possible, untried = _possible()
    tried = list(itertools.islice(itertools.cycle(possible), harms))
    for number, harm in enumerate(tried, start=1):
        with _on_disk_of_its_own(gate, harm.disk):
            end, line = _harmed(gate, harm, chance, first)
            say(f"{number} of {harms}, {harm.name}: {line}")
            _put_right(gate, harm)
            _require_right(gate, first, kept)
        gate.renew()
        ends[end] += 1
    counted = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    return (
        f"{harms} harms of {len(set(tried))} kinds to {gate.chip}: {counted}, in "
        f"{(time.monotonic() - start) / 60:.1f} min; after each a clean run: 0 wrong verdicts, 0 stores to repair"
        f"{untried}"
    )


def _possible() -> tuple[tuple[Harm, ...], str]:
    try:
        _own_mounts()
    except (NoDeviceError, OSError, subprocess.SubprocessError) as error:
        return FILES, f"; NOT TRIED, disks that fill up or become read-only: {error}"
    return (*FILES, *DISKS), ""


def _harmed(gate: Gate, harm: Harm, chance: random.Random, first: Ended) -> tuple[str, str]:
    # Early ones more often: later most files have been read.
    moment = time.monotonic() + first.seconds * chance.random() ** 2

    def strike(process: psutil.Process) -> str:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() >= moment and harm.strike(gate, chance):
                return harm.name
            time.sleep(0.05)
        return ""

    ended = gate.run(killer=strike)
    end = unharmed_or_undetermined(harm, ended, first)
    if not ended.killed and end != UNHARMED:
        raise ContractViolationError(
            f"before {harm.name}, {ended.line!r}:\n{ended.output[-6000:]}", required=first.line
        )
    return end if ended.killed else "over before the harm", ended.line


def unharmed_or_undetermined(harm: Harm, ended: Ended, first: Ended) -> str:
    """
    Judge how a run ended under which files were harmed.

    Returns
    -------
    end : str
        "as if nothing had happened", "undetermined", "rejected" or "refused".

    Raises
    ------
    ContractViolationError
        If it is accepted with other verdicts, rejected without need, or fails by an error of its own.
    """
    if (ended.status, ended.line, ended.verdicts) == (first.status, first.line, first.verdicts):
        return UNHARMED
    if ended.status == 4:  # pytest's own: the command line names a file that is not there, or is no spec
        return "refused"
    words = {verdict[0] for verdict in ended.verdicts.values()}
    internal = [name for name, verdict in ended.verdicts.items() if verdict[1] == "internal-error"]
    # The line must be there: a process that crashed has judged nothing.
    word = ended.line.partition(":")[0]
    may = {"undetermined": "rejected" not in words, "rejected": harm.may_reject}.get(word, False)
    if ended.status > 0 and may and not internal:
        return word
    raise ContractViolationError(
        f"{harm.name}: status {ended.status}, {ended.line!r}, internal errors in {internal}\n{ended.output[-6000:]}",
        required="undetermined for a reason, or what a run gives that nothing happened to",
    )


def _put_right(gate: Gate, harm: Harm) -> None:
    shutil.rmtree(gate.folder / "data")
    shutil.copytree(gate.folder / "spare", gate.folder / "data")
    shutil.copy(gate.folder / "spare.toml", gate.folder / "spec.toml")
    if harm.disk and not _mount(gate.folder / harm.disk, f"remount,rw,size={ROOM}"):
        raise NoDeviceError(f"the disk of {gate.folder / harm.disk} cannot be put right")


def _require_right(gate: Gate, first: Ended, kept: Kept) -> None:
    ended = gate.run()
    # What was built from changed data has keys of its own and does no harm.
    more = gate.entries() - kept[1]
    require_same(gate, ended, first, (kept[0], kept[1] | more))
