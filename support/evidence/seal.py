"""The seal of a bundle: hashes of all its files, and the hash of the file that lists them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from support.artifacts import file_sha256
from support.errors import NoDataError, WrongDataError
from support.evidence.model import EVIDENCE, SEAL, SIGNATURE, SealedFile

__all__ = ["read_sealed", "require_files", "seal", "sealed_files"]

#: Bytes of JSON we agree to parse; 5,000 timed calls at six batch sizes have 1 MB.
MAX_BYTES = 64 * 2**20
REMEDY = "get the bundle again from where it was made; what was changed in it is no evidence"


def sealed_files(folder: Path) -> Mapping[str, SealedFile]:
    """
    Size and hash of every file of a bundle but the seal itself.

    Raises
    ------
    WrongDataError
        If there is anything but files and folders, such as a symbolic link.
    """
    return {
        name: SealedFile(bytes=path.stat().st_size, sha256=file_sha256(path)) for name, path in _files(folder).items()
    }


def seal(folder: Path, text: str) -> None:
    """Write ``evidence.json`` and its hash, in the form that ``sha256sum --check`` reads."""
    (folder / EVIDENCE).write_text(text, encoding="utf-8")
    (folder / SEAL).write_text(f"{file_sha256(folder / EVIDENCE)}  {EVIDENCE}\n", encoding="ascii")


def read_sealed(folder: Path) -> bytes:
    """
    Read ``evidence.json`` once its hash holds.

    Raises
    ------
    NoDataError
        If there is no bundle.
    WrongDataError
        If the file or its hash was changed, or it is larger than any evidence.
    """
    path, seal_path = folder / EVIDENCE, folder / SEAL
    for file in (path, seal_path):
        if not file.is_file() or file.is_symlink():
            raise NoDataError(f"{file} is not a file", required=f"a bundle of evidence, with {EVIDENCE} and {SEAL}")
    for file in (path, seal_path):
        if (size := file.stat().st_size) > MAX_BYTES:
            raise WrongDataError(f"{file} has {size} bytes", required=f"at most {MAX_BYTES}")
    found, sealed = f"{file_sha256(path)}  {EVIDENCE}\n", seal_path.read_bytes()
    if found.encode() != sealed:
        raise WrongDataError(
            f"{path} was changed: it is sha256 {found[:64]}", required=f"as {SEAL} says", remedy=REMEDY
        )
    return path.read_bytes()


def require_files(folder: Path, sealed: Mapping[str, SealedFile]) -> None:
    """
    Check that a bundle holds exactly the files it was sealed with.

    Raises
    ------
    WrongDataError
        Naming the first file that is missing, foreign or changed.
    """
    found = _files(folder)
    for name in sorted(found.keys() ^ sealed.keys()):
        what = "is missing from the bundle" if name in sealed else "does not belong to the bundle"
        raise WrongDataError(
            f"{folder / name} {what}", required=f"the {len(sealed)} files of {EVIDENCE}", remedy=REMEDY
        )
    for name, facts in sealed.items():
        # The size first: a file that has grown may be too large to be hashed.
        if (size := found[name].stat().st_size) != facts.bytes:
            raise _changed(found[name], f"{size} bytes", f"{facts.bytes} bytes")
        if (digest := file_sha256(found[name])) != facts.sha256:
            raise _changed(found[name], f"sha256 {digest}", f"sha256 {facts.sha256}")


def _changed(path: Path, found: str, required: str) -> WrongDataError:
    return WrongDataError(f"{path} was changed: it has {found}", required=required, remedy=REMEDY)


def _files(folder: Path) -> dict[str, Path]:
    # By lstat: a link may lead anywhere, and a pipe would be waited for.
    files = {}
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in [*folders, *names]):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                files[path.relative_to(folder).as_posix()] = path
            elif not stat.S_ISDIR(mode):
                raise WrongDataError(f"{path} is not a file", required="plain files in a bundle", remedy=REMEDY)
    return {name: path for name, path in sorted(files.items()) if name not in (EVIDENCE, SEAL, SIGNATURE)}
