"""Content-addressed store of artifacts: built once, published whole, verified when used again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from support.errors import BuildFailedError, NoSpaceError, SuiteError, SuiteTimeoutError, WrongDataError
from support.plain_files import read_plain

__all__ = ["Artifact", "ArtifactStore", "Recipe", "disk_error", "disown", "file_sha256"]

MANIFEST = "artifact.json"
#: Bytes of a manifest; ours have 2 kB.
MAX_BYTES = 2**24
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Recipe:
    """
    Everything that decides the bytes of an artifact.

    Parameters
    ----------
    kind : str
        Name of the stage's product, such as ``onnx`` or ``feed``; a folder of the store.
    version : int
        Version of the stage's own code; raise it when the same inputs would give other bytes.
    inputs : mapping of str to str
        SHA-256 of everything that goes in.
    options : mapping
        JSON values that change the result.
    tools : mapping of str to str
        Versions of the tools that make it.
    """

    kind: str
    version: int
    inputs: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON object, equal to what a manifest holds after it was written and read."""
        recipe: dict[str, Any] = json.loads(self._canonical())
        return recipe

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of the recipe."""
        return hashlib.sha256(self._canonical().encode()).hexdigest()

    def _canonical(self) -> str:
        recipe = {
            "kind": self.kind,
            "version": self.version,
            "inputs": dict(self.inputs),
            "options": dict(self.options),
            "tools": dict(self.tools),
        }
        return json.dumps(recipe, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Artifact:
    """
    One product of a stage.

    `path` is a file, or a folder for products of several files. `sha256` identifies the content, `made_by` tells the
    recipe, log and duration, `parents` are the hashes of its inputs. `built` is true if this process built it now.
    """

    kind: str
    path: Path
    sha256: str
    made_by: Mapping[str, Any]
    parents: tuple[str, ...]
    built: bool = False


class ArtifactStore:
    """
    A folder of artifacts, shared by workers and processes.

    An entry is built in ``partial/`` under a lock and moved into place whole, so a killed builder leaves nothing that
    looks finished. The lock belongs to the operating system and dies with its holder.

    Parameters
    ----------
    root : Path
        Folder of the store; made when the first artifact is built.
    lock_seconds : float
        How long to wait for another builder of the same artifact.
    """

    def __init__(self, root: Path, *, lock_seconds: float) -> None:
        self.root = root
        self._lock_seconds = lock_seconds
        self._taken: dict[Path, bool] = {}

    def get(
        self,
        recipe: Recipe,
        name: str,
        build: Callable[[Path], Mapping[str, Any]],
        *,
        resumable: bool = False,
        self_verifying: tuple[str, ...] = (),
    ) -> Artifact:
        """
        Return the artifact of a recipe, building it if the store does not hold it intact.

        Parameters
        ----------
        recipe : Recipe
            What to make.
        name : str
            File or folder name of the product inside the entry.
        build : callable
            Called with the path to write; returns facts for ``made_by`` (JSON values).
        resumable : bool
            Leave what an earlier, killed builder wrote in place for `build` to go on with.
        self_verifying : tuple of str
            Relative names of files that carry checksums of their own, checked as they are read; for these only the
            size is checked here.

        Raises
        ------
        NoSpaceError
            If the disk fills up; what was written is removed.
        SuiteTimeoutError
            If another process holds the lock for too long.
        BuildFailedError
            If `build` returns without having written its product, or if the store cannot be written.
        """
        entry = self.root / recipe.kind / recipe.key[:20]
        found = self._open(entry, recipe, name)
        if found is None:
            with self._lock(recipe):
                # Another builder may have finished while we waited.
                found = self._open(entry, recipe, name) or self._build(
                    entry, recipe, name, build, resumable=resumable, self_verifying=self_verifying
                )
        self._taken.setdefault(entry, found.built)
        return found

    @property
    def summary(self) -> str:
        """How many different artifacts this process has built, and how many it has found."""
        built = sum(self._taken.values())
        return f"{built} built, {len(self._taken) - built} reused in {self.root}"

    def _lock(self, recipe: Recipe) -> _Held:
        path = self.root / "locks" / f"{recipe.kind}-{recipe.key[:20]}.lock"
        return _Held(path, self._lock_seconds, self.root)

    def _open(self, entry: Path, recipe: Recipe, name: str) -> Artifact | None:
        try:
            manifest = json.loads(read_plain(entry / MANIFEST, MAX_BYTES))
            intact = (
                manifest["recipe"] == recipe.as_json()
                and manifest["files"]
                and isinstance(manifest["facts"], dict)
                and (entry / name).exists()
                and all(".." not in file and _matches(entry / file, facts) for file, facts in manifest["files"].items())
            )
            return _artifact(entry / name, recipe, manifest, built=False) if intact else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def _build(
        self,
        entry: Path,
        recipe: Recipe,
        name: str,
        build: Callable[[Path], Mapping[str, Any]],
        *,
        resumable: bool,
        self_verifying: tuple[str, ...],
    ) -> Artifact:
        partial = self.root / "partial" / f"{recipe.kind}-{recipe.key[:20]}"
        try:
            if not resumable:
                _remove(partial)
            partial.mkdir(parents=True, exist_ok=True)
            manifest = _fill(partial, recipe, name, build, self_verifying)
            _publish(partial, entry)
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno in _FULL_DISK
            # Other data has another key, so nobody would go on with what wrong data left.
            if full or not resumable or isinstance(error, WrongDataError):
                _remove(partial)
            if isinstance(error, OSError):
                raise disk_error(error, f"building {recipe.kind}", self.root) from error
            raise
        return _artifact(entry / name, recipe, manifest, built=True)


class _Held:
    """A file lock with a time limit that says who waits for what."""

    def __init__(self, path: Path, seconds: float, root: Path) -> None:
        self._path, self._seconds, self._root = path, seconds, root

    def __enter__(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._path)
            self._lock.acquire(timeout=self._seconds)
        except Timeout:
            raise SuiteTimeoutError(
                f"another process has been building {self._path.stem} for {self._seconds:.0f} s",
                remedy="wait for it, stop it, or use another --artifacts=DIR",
            ) from None
        except OSError as error:
            raise disk_error(error, f"locking {self._path.stem}", self._root) from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _fill(
    partial: Path,
    recipe: Recipe,
    name: str,
    build: Callable[[Path], Mapping[str, Any]],
    self_verifying: tuple[str, ...],
) -> dict[str, Any]:
    start = time.perf_counter()
    facts = build(partial / name)
    if not (partial / name).exists():
        raise BuildFailedError(f"building {recipe.kind} ended without writing {name}")
    unhashed = {partial / name / file for file in self_verifying}
    files = {
        str(path.relative_to(partial)): _facts(path, hashed=path not in unhashed)
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {
        "recipe": recipe.as_json(),
        "files": files,
        "facts": dict(facts),
        "seconds": round(time.perf_counter() - start, 3),
    }
    _write_durably(partial / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def _facts(path: Path, *, hashed: bool) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path) if hashed else None}


def _matches(path: Path, facts: Mapping[str, Any]) -> bool:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != facts["bytes"]:
        return False
    return facts["sha256"] is None or file_sha256(path) == facts["sha256"]


def _artifact(path: Path, recipe: Recipe, manifest: Mapping[str, Any], *, built: bool) -> Artifact:
    files = manifest["files"]
    only = files.get(path.name)
    whole = only["sha256"] if only else hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    made_by = {"recipe": recipe.as_json(), "facts": manifest["facts"], "seconds": manifest["seconds"]}
    return Artifact(recipe.kind, path, whole, made_by, tuple(recipe.inputs.values()), built)


def _publish(partial: Path, entry: Path) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove(entry)  # a damaged entry: the lock is ours, and nobody reads what does not verify
    partial.rename(entry)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def disown(product: Path) -> None:
    """
    Let the store build a product again when it is next asked for: it was found damaged only as it was read.

    Parameters
    ----------
    product : Path
        File or folder of an `Artifact`. It stays, for whoever reads it now or wants to look at it; where the store
        cannot be written, so does its manifest.
    """
    with contextlib.suppress(OSError):
        (product.parent / MANIFEST).unlink()


def disk_error(error: OSError, step: str, root: Path) -> SuiteError:
    """Say what an error of the disk under a store means to the user: no space, or a failed step."""
    if error.errno not in _FULL_DISK:
        return BuildFailedError(
            f"{step} in {root} failed: {error}",
            remedy="check the file it names; if the store cannot be written, give --artifacts=DIR",
        )
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return NoSpaceError(
        f"the disk of {root} is full ({shutil.disk_usage(there).free / 2**20:.0f} MiB free)",
        remedy="free space, or give --artifacts=DIR on another disk; nothing half-made was kept",
    )


def file_sha256(path: Path) -> str:
    """
    SHA-256 of a file, read in pieces.

    Parameters
    ----------
    path : Path
        File to hash.

    Returns
    -------
    digest : str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
