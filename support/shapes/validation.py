"""The Shapes validation set: 133 images in the layout of COCO val2017, always the same ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.errors import UsageError
from support.progress import Progress
from support.shapes.scenes import CATEGORIES, KINDS, Scene, SceneObject, render, shape_mask, texture

__all__ = [
    "ANNOTATIONS",
    "IMAGES",
    "IMAGE_COUNT",
    "ValidationImage",
    "annotation_document",
    "validation_images",
    "write_validation_set",
]

ANNOTATIONS = "annotations/instances_val2017.json"
IMAGES = "val2017"
#: 7 × 19, so that every batch size above 1 that the suite uses ends with an incomplete batch.
IMAGE_COUNT = 133

SEED = 2026
_SIZES = (  # (height, width): landscape as most of COCO, portrait, square, and sides that no stride divides
    *((480, 640), (480, 640), (427, 640), (640, 480), (375, 500)),
    *((640, 427), (480, 640), (612, 612), (360, 640), (500, 333)),
)
_EMPTY_IMAGE = 17
_GRAYSCALE_IMAGES = (23, 71)  # COCO holds some, and a reader must expand them
_FIRST_ANNOTATION_ID = 900_000


@dataclass(frozen=True)
class ValidationImage:
    """
    One image before it is compressed.

    Parameters
    ----------
    id : int
        COCO image id.
    pixels : ndarray of uint8
        (H, W, 3) RGB, or (H, W) if grayscale.
    objects : tuple of SceneObject
        What is annotated.
    crowd : SceneObject or None
        A region of many small objects of one kind, annotated as one with ``iscrowd``.
    quality : int
        JPEG quality.
    progressive : bool
        Whether the JPEG is stored progressively.
    """

    id: int
    pixels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    crowd: SceneObject | None
    quality: int
    progressive: bool

    @property
    def file_name(self) -> str:
        """Name of the file, as in COCO."""
        return f"{self.id:012d}.jpg"

    def save(self, folder: Path) -> Path:
        """Compress the image into a folder and return the file."""
        path = folder / self.file_name
        Image.fromarray(self.pixels).save(path, "JPEG", quality=self.quality, progressive=self.progressive)
        return path


def validation_images(count: int = IMAGE_COUNT) -> Iterator[ValidationImage]:
    """
    Render the images in ascending order of their ids.

    Parameters
    ----------
    count : int
        How many. A smaller set shows the same first pictures under other ids.
    """
    ids = np.random.default_rng([SEED, 0]).choice(np.arange(1000, 600_000), count, replace=False)
    yield from map(_validation_image, range(count), sorted(ids.tolist()))


def _validation_image(index: int, image_id: int) -> ValidationImage:
    rng = np.random.default_rng([SEED, 1, index])
    scene, crowd = render(rng, *_SIZES[index % len(_SIZES)]), None
    if index == _EMPTY_IMAGE:
        scene = Scene(texture(rng, *scene.pixels.shape[:2]).astype(np.uint8), ())
    elif index % 12 == 5:
        scene, crowd = _with_crowd(rng, scene)
    pixels = scene.pixels
    if index in _GRAYSCALE_IMAGES:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    return ValidationImage(image_id, pixels, scene.objects, crowd, int(rng.integers(80, 93)), index % 16 == 3)


def _with_crowd(rng: np.random.Generator, scene: Scene) -> tuple[Scene, SceneObject]:
    """Paste a cluster of one small shape beside the objects of a scene; its region is half covered, more or less."""
    height, width = scene.pixels.shape[:2]
    kind = KINDS[int(rng.integers(len(KINDS)))]
    across, down = int(rng.uniform(90, 170)), int(rng.uniform(60, 120))
    left, top = _free_place(rng, scene, across, down)
    pixels, corners = scene.pixels.astype(np.float32), []
    for _ in range(int(rng.integers(12, 26))):
        mask = shape_mask(kind, rng.uniform(12, 26), rng.uniform(0, 2 * math.pi), 1.0)
        x = left + int(rng.uniform(0, max(1, across - mask.shape[1])))
        y = top + int(rng.uniform(0, max(1, down - mask.shape[0])))
        _blend(pixels[y:, x:], mask, rng.uniform(0, 255, 3))
        corners.append((x, y, min(x + mask.shape[1], width), min(y + mask.shape[0], height)))
    x0, y0, x1, y1 = zip(*corners, strict=True)
    box = (min(x0), min(y0), max(x1), max(y1))
    crowd = SceneObject(kind, box, (box[2] - box[0]) * (box[3] - box[1]) * 0.5)
    return replace(scene, pixels=pixels.clip(0, 255).astype(np.uint8)), crowd


def _free_place(rng: np.random.Generator, scene: Scene, across: int, down: int) -> tuple[int, int]:
    height, width = scene.pixels.shape[:2]
    while True:
        x, y = int(rng.uniform(0, width - across)), int(rng.uniform(0, height - down))
        boxes = (item.box for item in scene.objects)
        if all(x + across < x0 or x1 < x or y + down < y0 or y1 < y for x0, y0, x1, y1 in boxes):
            return x, y


def _blend(pixels: NDArray[np.float32], mask: NDArray[np.uint8], colour: NDArray[np.float64]) -> None:
    """Blend a shape into the upper left corner of `pixels`, in place."""
    part = mask[: pixels.shape[0], : pixels.shape[1]].astype(np.float32) / 255
    opacity = part[..., None] * 0.95
    window = pixels[: part.shape[0], : part.shape[1]]
    window[:] = window * (1 - opacity) + colour * opacity


def annotation_document(images: Iterable[ValidationImage]) -> dict[str, Any]:
    """
    Describe images as a COCO annotation file does.

    Returns
    -------
    document : dict
        ``info``, ``licenses``, ``images``, ``annotations`` (boxes as x, y, width, height in pixels) and ``categories``.
    """
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        height, width = image.pixels.shape[:2]
        records.append({"id": image.id, "file_name": image.file_name, "width": width, "height": height})
        marked = [(item, 0) for item in image.objects] + ([(image.crowd, 1)] if image.crowd else [])
        for item, iscrowd in marked:
            annotations.append(_annotation(_FIRST_ANNOTATION_ID + len(annotations), image.id, item, iscrowd))
    categories = [{"id": number, "name": kind, "supercategory": "shape"} for kind, number in CATEGORIES.items()]
    info = {"description": "Shapes validation set", "version": "1"}
    return {"info": info, "licenses": [], "images": records, "annotations": annotations, "categories": categories}


def _annotation(annotation_id: int, image_id: int, item: SceneObject, iscrowd: int) -> dict[str, Any]:
    x0, y0, x1, y1 = map(float, item.box)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CATEGORIES[item.kind],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": float(item.visible_area),
        "iscrowd": iscrowd,
    }


def write_validation_set(target: Path, progress: Progress, *, count: int = IMAGE_COUNT) -> None:
    """
    Write the set into a new folder; an interrupted call leaves nothing there.

    Parameters
    ----------
    target : Path
        Folder to make, or an empty one. Gets ``val2017/*.jpg`` and ``annotations/instances_val2017.json``.
    progress : Progress
        Told of every image.
    count : int
        How many images.

    Raises
    ------
    UsageError
        If something is at `target` already, or the folder above it is missing.
    """
    _check_target(target)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        # A folder inside the scratch folder, which itself is closed to other users.
        folder = Path(scratch) / target.name
        _write(folder, progress, count)
        if target.exists():
            target.rmdir()
        folder.rename(target)


def _check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder", remedy="make it first, or name another target")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} exists already", required="a new or empty folder", remedy="name another target")


def _write(folder: Path, progress: Progress, count: int) -> None:
    (folder / IMAGES).mkdir(parents=True)
    (folder / ANNOTATIONS).parent.mkdir()
    images = []
    with progress.step("rendering validation images") as advance:
        for image in validation_images(count):
            image.save(folder / IMAGES)
            images.append(image)
            advance(len(images), count)
    (folder / ANNOTATIONS).write_text(json.dumps(annotation_document(images)), encoding="utf-8")
