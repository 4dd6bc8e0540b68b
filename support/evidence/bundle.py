"""A bundle of evidence on disk: written whole or not at all, and read only if every file is as it was sealed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from support.artifacts import disk_error
from support.dataset import GroundTruth
from support.detections import Detections
from support.errors import UsageError, WrongDataError
from support.evidence.columns import load_columns, save_columns
from support.evidence.model import EVIDENCE, SEAL, SIGNATURE, TRUTH, BundleName, EvidenceDocument
from support.evidence.seal import read_sealed, require_files, seal, sealed_files
from support.evidence.truth import load_truth, save_truth
from support.own_folders import OwnFolder

__all__ = ["Bundle", "read_bundle", "require_replaceable", "write_bundle"]

#: What may lie in the folder of a bundle, so that only bundles are ever replaced.
PAGES = frozenset({"report.html", "report.md"})
KNOWN = PAGES | {EVIDENCE, SEAL, SIGNATURE, "detections", TRUTH, "pictures"}
#: Beginning of the name of a bundle that is being written.
UNFINISHED = ".acceptance-bundle-"
_NAMES = TypeAdapter(list[BundleName])


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk; its arrays are read when first asked for."""

    folder: Path
    document: EvidenceDocument

    @cached_property
    def passes(self) -> Mapping[int, Detections]:
        """What the candidate detected, by batch size."""
        return {batch: load_columns(self.folder / record.detections) for batch, record in self.document.passes.items()}

    @cached_property
    def reference(self) -> Detections | None:
        """What the checkpoint detected on the same images."""
        record = self.document.reference
        return None if record is None else load_columns(self.folder / record.detections)

    @cached_property
    def truth(self) -> GroundTruth | None:
        """The objects of the images."""
        return None if self.document.truth is None else load_truth(self.folder / self.document.truth)


def write_bundle(
    folder: Path,
    document: EvidenceDocument,
    *,
    detections: Mapping[int, Detections],
    reference: Detections | None,
    truth: GroundTruth | None,
    pictures: Mapping[str, bytes],
    write_pages: Callable[[Bundle], None] | None = None,
) -> Path:
    """
    Write a bundle, which appears whole or not at all.

    Parameters
    ----------
    folder : Path
        New folder, or that of an earlier bundle, which is replaced.
    document : EvidenceDocument
        What to write; its `files` are filled in here.
    detections : mapping of int to Detections
        Of every pass of the document, by batch size.
    reference, truth : optional
        Of the document's `reference` and `truth`, which say whether they are there.
    pictures : mapping of str to bytes
        Image files by their names in the folder ``pictures``; empty for a bundle without pictures.
    write_pages : callable, optional
        Writes reports into the folder of the unfinished bundle it is given; they are sealed like everything else.

    Returns
    -------
    folder : Path
        The finished bundle.

    Raises
    ------
    UsageError
        If the folder holds anything but a bundle.
    ValueError
        If the parts are not those of the document, or a picture's name leads out of its folder.
    NoSpaceError, BuildFailedError
        If the disk is full or cannot be written.
    """
    folder = folder.absolute()
    require_replaceable(folder)
    _require_parts(document, detections, reference, truth)
    named = {f"pictures/{name}": data for name, data in pictures.items()}
    _NAMES.validate_python(list(named))
    own = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        own = OwnFolder(UNFINISHED, folder.parent, remedy="give --report-dir=DIR on a disk with room")
        partial = own.path / "bundle"
        partial.mkdir()
        _write_parts(partial, document, detections, reference, truth, named)
        if write_pages is not None:
            write_pages(Bundle(partial, document))
        complete = document.model_copy(update={"files": sealed_files(partial)})
        seal(partial, complete.model_dump_json(indent=1))
        _publish(partial, folder)
    except OSError as error:
        raise disk_error(error, "writing the evidence", folder.parent) from error
    finally:
        if own is not None:
            own.close()
    return folder


def require_replaceable(folder: Path) -> None:
    """
    Refuse to write a bundle over anything else.

    Raises
    ------
    UsageError
        If there is a file of this name, or a folder that holds other things than a bundle or pages about some.
    """
    if not folder.exists():
        return
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    # Without evidence, "pictures" may be anybody's.
    others = sorted(found - (KNOWN if EVIDENCE in found else PAGES))
    if others:
        raise UsageError(f"{folder} holds other files: {', '.join(others[:3])}", required="a new or an empty folder")


def _require_parts(
    document: EvidenceDocument,
    detections: Mapping[int, Detections],
    reference: Detections | None,
    truth: GroundTruth | None,
) -> None:
    if detections.keys() != document.passes.keys():
        raise ValueError(f"detections of batch sizes {sorted(detections)}, the document has {sorted(document.passes)}")
    for name, part in {"reference": reference, "truth": truth}.items():
        if (part is None) != (getattr(document, name) is None):
            raise ValueError(f"{name}: either given and in the document, or neither")


def _write_parts(
    folder: Path,
    document: EvidenceDocument,
    detections: Mapping[int, Detections],
    reference: Detections | None,
    truth: GroundTruth | None,
    pictures: Mapping[str, bytes],
) -> None:
    for batch, record in document.passes.items():
        save_columns(_place(folder, record.detections), detections[batch])
    if reference is not None and document.reference is not None:
        save_columns(_place(folder, document.reference.detections), reference)
    if truth is not None and document.truth is not None:
        save_truth(_place(folder, document.truth), truth)
    for name, data in pictures.items():
        _place(folder, name).write_bytes(data)


def _place(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _publish(partial: Path, folder: Path) -> None:
    # An earlier bundle steps aside until the new one is in place.
    if not folder.exists():
        partial.rename(folder)
        return
    # Not beside the unfinished one before this is in place: whoever clears that away after a kill would lose both.
    earlier = folder.with_name(f".{folder.name}.earlier{partial.parent.name}")
    folder.rename(earlier)
    try:
        partial.rename(folder)
    except BaseException:
        earlier.rename(folder)
        raise
    earlier.rename(partial)


def read_bundle(folder: Path) -> Bundle:
    """
    Open a bundle and check every seal.

    Parameters
    ----------
    folder : Path
        The folder that holds ``evidence.json``.

    Raises
    ------
    NoDataError
        If there is no bundle.
    WrongDataError
        If a file is missing, foreign, changed or no file; or if the evidence is none of this suite's. The message names
        the file.
    """
    text = read_sealed(folder)
    try:
        document = EvidenceDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise WrongDataError(
            f"{folder / EVIDENCE}: {where}: {first['msg']}",
            required="the evidence of this version of the suite",
            remedy="replay it with the revision of the suite that made it, which it names as code.revision",
        ) from None
    require_files(folder, document.files)
    _require_listed(folder, document)
    return Bundle(folder, document)


def _require_listed(folder: Path, document: EvidenceDocument) -> None:
    named = [record.detections for record in document.passes.values()]
    named += [document.reference.detections] if document.reference else []
    named += [document.truth] if document.truth else []
    for name in named:
        if name not in document.files:
            raise WrongDataError(f"{folder / EVIDENCE} names {name}, which is not among its files")
