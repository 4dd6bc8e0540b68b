"""Clauses about the data: the right set, the right network inputs, and every image scored once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.dataset import CocoDataset, ImageRecord
from support.errors import NoReferenceError, WrongDataError
from support.feed import Feed
from support.inputs import InputFormat, image_bytes
from support.progress import Progress
from support.spec import Dataset
from support.verdict import Measurement

__all__ = ["coverage", "dataset_pins", "different_from_effdet", "different_from_reference"]

_NO_EFFDET = "pip install -e '.[export]', or give --reference=DIR to compare with recorded inputs"


def dataset_pins(dataset: CocoDataset, layout: Dataset) -> Measurement:
    """
    Compare the whole data set with the pins of the spec, for the clause ``dataset_pins``.

    Parameters
    ----------
    dataset : CocoDataset
        As opened, not limited.
    layout : support.spec.Dataset
        The pins; a digest that is not pinned is reported in ``origin``, to be recorded.

    Raises
    ------
    WrongDataError
        If a pin does not hold: another data set says nothing about the model. The first difference is named.
    """
    found = {
        "image_count": len(dataset.images),
        "category_count": len(dataset.truth.category_ids),
        "annotation_digest": dataset.annotation_digest,
        "size_digest": dataset.size_digest,
    }
    for key, value in found.items():
        pinned = getattr(layout, key)
        if pinned is not None and pinned != value:
            raise WrongDataError(
                f"{dataset.root / layout.annotations}: {key} is {value}",
                required=f"{pinned} (dataset.{key} of the spec)",
                remedy=f"give the data set of the spec ({layout.source}): --coco-root=DIR",
            )
    images = len(dataset.images)
    origin = {"annotation_digest": dataset.annotation_digest, "size_digest": dataset.size_digest}
    return Measurement({"images": images}, images, layout.image_count, _unpinned(layout, origin), origin=origin)


def _unpinned(layout: Dataset, origin: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{key} {value} (not pinned)" for key, value in origin.items() if getattr(layout, key) is None)


def different_from_effdet(dataset: CocoDataset, feed: Feed, progress: Progress) -> Measurement:
    """
    Compare every input of a feed with that of effdet's own loader, bit for bit, for the clause ``input_contract``.

    Parameters
    ----------
    dataset : CocoDataset
        The whole data set; a feed of fewer images gives a partial measurement.
    feed : Feed
        The inputs to judge.
    progress : Progress
        Told of every image.

    Raises
    ------
    WrongDataError
        If the feed holds an image that the data set does not, or no image at all; or if a file cannot be read or has
        changed since it was decoded for the feed.
    NoReferenceError
        If effdet is not installed.
    """
    images = {image.id: image for image in dataset.images}
    ids = feed.image_ids.tolist()
    if not ids or not images.keys() >= set(ids):
        raise WrongDataError("the feed is not that of the data set", required=f"some of its {len(images)} images")
    load = _effdet_loader(feed.fmt)

    def difference(index: int) -> float | None:
        data = _file_of(images[ids[index]], feed.file_digests[index])
        return _largest_difference(feed.tensors([index])[0], load(data))

    different = {}
    with progress.step("comparing inputs with effdet") as advance, ThreadPoolExecutor() as pool:
        # Decoding and arithmetic release the interpreter, so threads use every processor.
        for index, found in enumerate(pool.map(difference, range(len(ids)))):
            if found is not None:
                different[ids[index]] = found
            advance(index + 1, len(ids))
    worst = sorted(different.items(), key=lambda item: -item[1])
    findings = [f"image id {key}: largest difference {value:g}" for key, value in worst]
    return _input_contract(len(ids), len(images), findings, "effdet's own loader")


def different_from_reference(feed: Feed, reference_checksums: Mapping[int, int]) -> Measurement:
    """
    Compare the inputs of a feed with those a reference was measured with, for the clause ``input_contract``.

    Parameters
    ----------
    feed : Feed
        The inputs to judge.
    reference_checksums : mapping of int to int
        CRC-32 of the S × S × 3 grey levels of every image id of the reference.

    Raises
    ------
    WrongDataError
        If feed and reference have no image in common.
    """
    found = dict(zip(feed.image_ids.tolist(), feed.checksums.tolist(), strict=True))
    common = found.keys() & reference_checksums.keys()
    if not common:
        raise WrongDataError("the reference has no input of this data set", remedy="record it again with this data set")
    findings = [
        f"image id {key}: checksum {found[key]:08x}, in the reference {reference_checksums[key]:08x}"
        for key in sorted(common)
        if found[key] != reference_checksums[key]
    ]
    expected = len(found.keys() | reference_checksums.keys())
    return _input_contract(len(common), expected, findings, "the reference's checksums")


def coverage(
    scored: Sequence[int], expected: Sequence[int], *, padded_scored: int, asked: Collection[int] | None = None
) -> Measurement:
    """
    Account for every image of the set, for the clause ``coverage``.

    Parameters
    ----------
    scored : sequence of int
        Id of every image the pass gave detections for, also of those without any, one entry for each time.
    expected : sequence of int
        Ids of the full set.
    padded_scored : int
        Slots that only filled up a batch and were scored all the same.
    asked : collection of int, optional
        Ids the pass was asked for, if not all. An image that was asked for and not scored is missing; one that was
        not asked for makes the measurement partial.

    Raises
    ------
    WrongDataError
        If there is nothing to account for.
    """
    wanted = set(expected if asked is None else asked)
    if not wanted or not wanted <= set(expected):
        raise WrongDataError(f"{len(wanted)} images were asked for", required=f"some of the {len(expected)} of the set")
    times = Counter(scored)
    missing = sorted(wanted - times.keys())
    foreign = sorted(times.keys() - wanted)
    repeated = sorted(key for key in wanted if times[key] > 1)
    surplus = sum(times[key] for key in foreign) + sum(times[key] - 1 for key in repeated)
    values = {"missing": len(missing), "surplus": surplus, "padded_scored": padded_scored}
    problems = {"not scored": missing, "scored but not asked for": foreign, "scored more than once": repeated}
    findings = tuple(f"{what}: {len(ids)} image ids: {ids[:5]}" for what, ids in problems.items() if ids)
    return Measurement(values, len(wanted), len(set(expected)), findings)


def _input_contract(count: int, expected: int, findings: Sequence[str], norm: str) -> Measurement:
    origin = {"compared_with": norm}
    return Measurement({"different_tensors": len(findings)}, count, expected, tuple(findings[:5]), origin=origin)


def _largest_difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float | None:
    """Return None if equal in every bit, else the largest difference, which is 0 between 0.0 and -0.0."""
    if np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)):
        return None
    return float(np.abs(ours - theirs).max())


def _file_of(image: ImageRecord, file_digest: str) -> bytes:
    try:
        return image_bytes(image.path, file_digest)
    except OSError as error:
        raise WrongDataError(f"{image.path} cannot be read: {error.strerror}") from error


def _effdet_loader(fmt: InputFormat) -> Callable[[bytes], NDArray[np.float32]]:
    try:
        import torch
        from effdet.data.loader import DetectionFastCollate
        from effdet.data.transforms import transforms_coco_eval
    except ImportError as error:
        raise NoReferenceError(f"effdet's loader is not here: {error}", remedy=_NO_EFFDET) from error
    transform = transforms_coco_eval(fmt.size, use_prefetcher=True, mean=fmt.mean, std=fmt.std)
    collate = DetectionFastCollate()
    mean, std = (torch.tensor([x * 255 for x in part]).view(1, 3, 1, 1) for part in (fmt.mean, fmt.std))

    def load(data: bytes) -> NDArray[np.float32]:
        pixels, _ = collate([transform(Image.open(BytesIO(data)).convert("RGB"), {})])
        # The arithmetic of effdet's PrefetchLoader, which itself runs on CUDA only.
        tensor: NDArray[np.float32] = pixels.float().sub_(mean).div_(std)[0].numpy()
        return tensor

    return load
