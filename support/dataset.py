"""A COCO data set on disk: its images and ground truth, checked before anything relies on them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict

from support.errors import NoDataError, UsageError, WrongDataError
from support.spec import Dataset

__all__ = ["CocoDataset", "GroundTruth", "ImageRecord", "open_dataset"]

#: Bytes of JSON we agree to parse; the largest COCO file, instances_train2017.json, has 449 MB.
MAX_ANNOTATION_BYTES = 512 * 2**20
#: Largest integer a float64 holds exactly: scorers keep image and annotation ids in float arrays.
MAX_ID = 2**53
REMEDY = "give the folder that holds images and annotations: --coco-root=DIR"

_Text = Annotated[str, Field(min_length=1)]
_Side = Annotated[int, Field(ge=1, le=2**31 - 1)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_CategoryId = Annotated[int, Field(ge=1, le=2**31 - 1)]
_ImageId = Annotated[int, Field(ge=0, le=MAX_ID)]
# pycocotools marks an unmatched ground truth by 0, so an annotation of that id could never be found.
_AnnotationId = Annotated[int, Field(ge=1, le=MAX_ID)]


# Strict: "12", 12.5 and true are no ids. Keys that are not named here, such as segmentation, are dropped.
@with_config(ConfigDict(strict=True))
class _Image(TypedDict):
    id: _ImageId
    file_name: _Text
    width: _Side
    height: _Side


@with_config(ConfigDict(strict=True))
class _Annotation(TypedDict):
    id: _AnnotationId
    image_id: _ImageId
    category_id: _CategoryId
    bbox: Annotated[list[_NotNegative], Field(min_length=4, max_length=4)]
    area: _NotNegative
    iscrowd: Annotated[int, Field(ge=0, le=1)]


@with_config(ConfigDict(strict=True))
class _Category(TypedDict):
    id: _CategoryId
    name: _Text


@with_config(ConfigDict(strict=True))
class _Coco(TypedDict):
    images: Annotated[list[_Image], Field(min_length=1)]
    annotations: list[_Annotation]
    categories: Annotated[list[_Category], Field(min_length=1)]


_SCHEMA = TypeAdapter(_Coco)


@dataclass(frozen=True)
class ImageRecord:
    """
    One image of the set.

    `width` and `height` are pixels as the annotations state them, `path` is where the file lies.
    """

    id: int
    file_name: str
    width: int
    height: int
    path: Path


@dataclass(frozen=True)
class GroundTruth:
    """
    What scoring boxes needs, and nothing else.

    Parameters
    ----------
    coco : mapping
        ``images`` (id, file_name, width, height), ``annotations`` (id, image_id, category_id, bbox as x, y, width,
        height in image pixels, area in square pixels, iscrowd) and ``categories`` (id, name), in the file's order.
    category_ids : tuple of int
        Every category id, ascending.
    """

    coco: Mapping[str, Any]
    category_ids: tuple[int, ...]

    def limited(self, image_ids: Collection[int]) -> GroundTruth:
        """
        Return the truth of some of the images, with all categories kept.

        Raises
        ------
        WrongDataError
            If an id is not in the set.
        """
        wanted = set(image_ids)
        unknown = sorted(wanted - {image["id"] for image in self.coco["images"]})
        if unknown:
            raise WrongDataError(f"{len(unknown)} image ids are not in the ground truth: {unknown[:5]}")
        coco = {
            "images": [image for image in self.coco["images"] if image["id"] in wanted],
            "annotations": [item for item in self.coco["annotations"] if item["image_id"] in wanted],
            "categories": self.coco["categories"],
        }
        return GroundTruth(coco, self.category_ids)


@dataclass(frozen=True)
class CocoDataset:
    """
    An opened data set.

    `images` are ascending by id. `annotation_digest` and `size_digest` are SHA-256 of canonical forms, the same
    whatever the order and formatting of the JSON file; they describe exactly the images held here.
    """

    root: Path
    images: tuple[ImageRecord, ...]
    truth: GroundTruth
    annotation_digest: str
    size_digest: str

    def limited(self, count: int) -> CocoDataset:
        """
        Return the first `count` images by id; all of them if there are no more.

        Raises
        ------
        UsageError
            If `count` is not positive.
        """
        if count < 1:
            raise UsageError(f"--limit={count}: no image would be left", required="a positive number of images")
        images = self.images[:count]
        return _dataset(self.root, images, self.truth.limited([image.id for image in images]))


def open_dataset(root: Path, layout: Dataset) -> CocoDataset:
    """
    Read and check a COCO data set.

    Parameters
    ----------
    root : Path
        Folder the layout's paths are relative to.
    layout : support.spec.Dataset
        Where images and annotations lie. Its pins are judged elsewhere.

    Raises
    ------
    NoDataError
        If the root, the image folder or the annotation file is not there.
    WrongDataError
        If the annotations are not COCO instance annotations, contradict themselves, or name image files that are
        missing or lie outside the image folder; the message names file, key and index.
    """
    folder, file = root / layout.images, root / layout.annotations
    _require_layout(root, folder, file)
    coco = _read_coco(file)
    _require_consistent(coco, file)
    images = _locate_images(coco["images"], folder, file)
    category_ids = tuple(sorted(category["id"] for category in coco["categories"]))
    return _dataset(root, images, GroundTruth(cast("dict[str, Any]", coco), category_ids))


def _dataset(root: Path, images: tuple[ImageRecord, ...], truth: GroundTruth) -> CocoDataset:
    sizes = [(image.id, image.width, image.height) for image in images]
    return CocoDataset(root, images, truth, _annotation_digest(truth.coco), _digest(sizes))


def _require_layout(root: Path, folder: Path, file: Path) -> None:
    for path, what in ((root, "the root of a COCO data set"), (folder, "the folder of its images")):
        if not path.is_dir():
            raise NoDataError(f"{path} is not a folder", required=what, remedy=REMEDY)
    if not file.is_file():
        raise NoDataError(f"{file} is not a file", required="COCO instance annotations", remedy=REMEDY)


def _read_coco(file: Path) -> _Coco:
    try:
        if (size := file.stat().st_size) > MAX_ANNOTATION_BYTES:
            raise WrongDataError(f"{file} has {size} bytes", required=f"at most {MAX_ANNOTATION_BYTES}")
        # This parser stops at a nesting of 200 and refuses NaN, which JSON does not have.
        parsed = from_json(file.read_bytes(), allow_inf_nan=False)
        return _SCHEMA.validate_python(parsed)
    except OSError as error:
        raise WrongDataError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise WrongDataError(f"{file}: {_describe(error)}", required="COCO instance annotations") from None
    except ValueError as error:
        raise WrongDataError(f"{file} is not JSON: {error}", required="COCO instance annotations") from None


def _describe(error: ValidationError) -> str:
    """Name key, index and value of the first problem, and how many there are."""
    first = error.errors(include_url=False)[0]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    found = "" if first["type"] == "missing" else f" (found {str(first['input'])[:80]})"
    more = f"; {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{key or 'top level'}: {first['msg']}{found}{more}"


def _require_consistent(coco: _Coco, file: Path) -> None:
    for table in ("images", "annotations", "categories"):
        _require_unique(f"{file}: {table}", "id", [row["id"] for row in cast("Mapping[str, Any]", coco)[table]])
    _require_unique(f"{file}: images", "file_name", [image["file_name"] for image in coco["images"]])
    images = {image["id"] for image in coco["images"]}
    categories = {category["id"] for category in coco["categories"]}
    for index, item in enumerate(coco["annotations"]):
        if item["image_id"] not in images:
            raise WrongDataError(f"{file}: annotations[{index}].image_id: no image has the id {item['image_id']}")
        if item["category_id"] not in categories:
            found = f"{file}: annotations[{index}].category_id: no category has the id {item['category_id']}"
            raise WrongDataError(found, required=f"one of {sorted(categories)[:100]}")


def _require_unique(where: str, key: str, values: Sequence[int | str]) -> None:
    first: dict[int | str, int] = {}
    for index, value in enumerate(values):
        earlier = first.setdefault(value, index)
        if earlier != index:
            found = f"{where}[{index}].{key}: {value!r} is also at index {earlier}"
            raise WrongDataError(found, required="unique values")


def _locate_images(images: Sequence[_Image], folder: Path, file: Path) -> tuple[ImageRecord, ...]:
    inside = os.path.realpath(folder) + os.sep
    records = []
    for index, image in enumerate(images):
        path = folder / image["file_name"]
        problem = _path_problem(path, image["file_name"], inside)
        if problem:
            found = f"{file}: images[{index}].file_name: {image['file_name']!r} {problem}"
            raise WrongDataError(found, required=f"a file inside {folder}", remedy="complete or repair the data set")
        records.append(ImageRecord(image["id"], image["file_name"], image["width"], image["height"], path))
    return tuple(sorted(records, key=lambda record: record.id))


def _path_problem(path: Path, name: str, inside: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "leaves the image folder"
    try:
        # A symbolic link may lead anywhere, whatever its name looks like.
        if not os.path.realpath(path).startswith(inside):
            return "leaves the image folder"
        return "" if path.is_file() else "is not there"
    except (OSError, ValueError) as error:
        return f"is not a usable name ({error})"


def _annotation_digest(coco: Mapping[str, Any]) -> str:
    # The schema made every measure a float, so 12 and 12.0 are the same box.
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    return _digest(
        {
            "images": sorted(image["id"] for image in coco["images"]),
            "categories": sorted((category["id"], category["name"]) for category in coco["categories"]),
            "annotations": sorted([row[key] for key in keys] for row in coco["annotations"]),
        }
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
