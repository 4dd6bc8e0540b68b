"""The reference bundle: what the checkpoint itself detects, as measured on a host with PyTorch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from support.arrays import MAX_BYTES
from support.artifacts import file_sha256
from support.dataset import CocoDataset
from support.detections import Detections
from support.errors import NoReferenceError, UsageError, WrongDataError
from support.heads import Heads
from support.passes import read_heads, write_heads
from support.plain_files import read_plain
from support.spec import AcceptanceSpec, Model

__all__ = [
    "Reference",
    "ReferenceFacts",
    "model_digest",
    "open_reference",
    "publish_reference",
    "require_same_world",
    "write_reference",
]

FACTS = "reference.json"
DETECTIONS = "detections.npz"
GOLDEN = "golden.npz"
#: Bytes of facts; those of 5,000 images have 0.1 MB.
MAX_FACTS = 2**26


class ReferenceFacts(BaseModel):
    """
    The readable part of a bundle.

    `input_checksums` holds, per image id, the CRC-32 of the 8-bit network input; `artifacts` the SHA-256 of every model
    built from the checkpoint; `files` seals the two binary files.
    """

    # As strings, because JSON has no NaN, which is the AP of images without objects.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    spec_name: str
    spec_version: str
    model_digest: str
    checkpoint_sha256: str
    checkpoint_known_as: str
    annotation_digest: str
    size_digest: str
    input_checksums: Mapping[int, int]
    golden_ids: tuple[int, ...]
    ap: float
    runtime: Mapping[str, str]
    files: Mapping[str, str]
    artifacts: Mapping[str, str] = {}


@dataclass(frozen=True)
class Reference:
    """A bundle on disk; detections and golden heads are read when first asked for."""

    folder: Path
    facts: ReferenceFacts

    @cached_property
    def detections(self) -> Detections:
        """What the checkpoint detects on every image of the bundle."""
        return Detections.load(self.folder / DETECTIONS)

    @cached_property
    def golden(self) -> Heads:
        """Raw heads of the images `facts.golden_ids`, in that order."""
        return read_heads(self.folder / GOLDEN)


def model_digest(model: Model) -> str:
    """SHA-256 of the canonical JSON of the spec's model table: architecture, input format and decoding."""
    text = json.dumps(model.model_dump(mode="json", exclude={"source"}), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_reference(folder: Path, detections: Detections, golden: Heads, facts: Mapping[str, Any]) -> None:
    """Write a bundle into a folder, sealing its binary files; `facts` are the other fields of `ReferenceFacts`."""
    folder.mkdir(parents=True, exist_ok=True)
    detections.save(folder / DETECTIONS)
    write_heads(folder / GOLDEN, golden)
    files = {name: file_sha256(folder / name) for name in (DETECTIONS, GOLDEN)}
    complete = ReferenceFacts(**facts, files=files)
    (folder / FACTS).write_text(complete.model_dump_json(indent=1), encoding="utf-8")


def publish_reference(reference: Reference, folder: Path, artifacts: Mapping[str, str]) -> None:
    """
    Copy a bundle to where the user wants it, with the hashes of the models built from the same checkpoint.

    Raises
    ------
    UsageError
        If there is anything but an earlier bundle, which alone may be replaced.
    """
    _require_replaceable(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(reference.folder, partial)
    facts = reference.facts.model_copy(update={"artifacts": dict(artifacts)})
    (partial / FACTS).write_text(facts.model_dump_json(indent=1), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _require_replaceable(folder: Path) -> None:
    remedy = "name a new or an empty folder"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--record-reference={folder}: not a folder", remedy=remedy)
    # A file of the same name is not enough: everything in the folder goes when it is replaced.
    others = sorted({path.name for path in folder.glob("*")} - {FACTS, DETECTIONS, GOLDEN})
    if others:
        raise UsageError(f"--record-reference={folder}: holds other files: {', '.join(others[:3])}", remedy=remedy)


def open_reference(folder: Path) -> Reference:
    """
    Open a bundle and check its seals.

    Raises
    ------
    NoReferenceError
        If there is no bundle.
    WrongDataError
        If it is damaged: unreadable facts, a missing file, or one whose hash differs.
    """
    path = folder / FACTS
    if not path.is_file():
        raise NoReferenceError(
            f"{folder} holds no reference bundle", required=FACTS, remedy="make one with --record-reference=DIR"
        )
    try:
        facts = ReferenceFacts.model_validate_json(read_plain(path, MAX_FACTS))
    except OSError as error:
        raise WrongDataError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise WrongDataError(f"{path}: not a reference: {where}: {first['msg']}") from None
    for name in (DETECTIONS, GOLDEN):
        _check_seal(folder / name, facts.files.get(name, ""))
    return Reference(folder, facts)


def _check_seal(path: Path, sealed: str) -> None:
    if path.is_file() and (size := path.stat().st_size) > MAX_BYTES:
        raise WrongDataError(f"{path} has {size} bytes", required=f"at most {MAX_BYTES}")
    found = file_sha256(path) if path.is_file() else None
    if found is None or found != sealed:
        raise WrongDataError(
            f"{path} is {f'sha256 {found}' if found else 'missing'}",
            required=f"sha256 {sealed}",
            remedy="record the reference again with --record-reference",
        )


def require_same_world(
    reference: Reference, spec: AcceptanceSpec, dataset: CocoDataset, checkpoint_sha256: str | None
) -> None:
    """
    Check that a bundle was measured with this spec's model, on this dataset and, if it is known, this checkpoint.

    Raises
    ------
    WrongDataError
        Naming the first difference.
    """
    facts = reference.facts
    pairs = {
        "model table of the spec": (facts.model_digest, model_digest(spec.model)),
        "annotations": (facts.annotation_digest, dataset.annotation_digest),
        "image sizes": (facts.size_digest, dataset.size_digest),
        "checkpoint": (facts.checkpoint_sha256, checkpoint_sha256 or facts.checkpoint_sha256),
    }
    for what, (recorded, here) in pairs.items():
        if recorded != here:
            raise WrongDataError(
                f"{reference.folder}: recorded with another {what}: {recorded}",
                required=here,
                remedy="use the reference of this checkpoint and dataset, or record it again",
            )
