"""The ground truth as a bundle keeps it: what rescoring needs, and no image."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import from_json

from support.dataset import _SCHEMA, GroundTruth, _annotation_digest, _describe, _digest, _require_consistent
from support.errors import WrongDataError
from support.plain_files import read_plain

__all__ = ["load_truth", "save_truth", "truth_digests"]

#: Bytes of JSON we agree to unpack; that of COCO val2017 has 6 MB without its masks. As objects, the worst of them take
#: thirty times as much memory.
MAX_BYTES = 64 * 2**20


def save_truth(path: Path, truth: GroundTruth) -> None:
    """Write boxes, areas, crowd flags, ids and sizes as compressed COCO annotations; equal truths give equal bytes."""
    text = json.dumps(dict(truth.coco), separators=(",", ":"), ensure_ascii=False)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def load_truth(path: Path) -> GroundTruth:
    """
    Read what `save_truth` wrote.

    Raises
    ------
    WrongDataError
        If the file is damaged, unpacks to more than any data set has, or holds no consistent annotations.
    """
    try:
        coco = _SCHEMA.validate_python(from_json(_unpacked(path), allow_inf_nan=False))
    except ValidationError as error:
        raise WrongDataError(f"{path}: {_describe(error)}", required="COCO instance annotations") from None
    except (OSError, ValueError, zlib.error) as error:
        raise WrongDataError(f"{path} is damaged: {error}", remedy="make the bundle again") from error
    _require_consistent(coco, path)
    return GroundTruth(cast("dict[str, Any]", coco), tuple(sorted(row["id"] for row in coco["categories"])))


def truth_digests(truth: GroundTruth) -> tuple[str, str]:
    """
    Return the digests of annotations and of image sizes.

    Returns
    -------
    annotation_digest, size_digest : str
        As `support.dataset.CocoDataset` has them for the same images.
    """
    sizes = sorted((image["id"], image["width"], image["height"]) for image in truth.coco["images"])
    return _annotation_digest(truth.coco), _digest(sizes)


def _unpacked(path: Path) -> bytes:
    # Few bytes can unpack to very many, and a bundle may come from anybody.
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    text = unpacker.decompress(read_plain(path, MAX_BYTES), MAX_BYTES)
    if not unpacker.eof:
        raise ValueError(f"it ends too early, or unpacks to more than {MAX_BYTES} bytes")
    return text
