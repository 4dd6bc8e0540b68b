"""The input feed: every image decoded and scaled once, shared by all batch sizes and processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from io import BufferedRandom, BufferedReader
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from support.artifacts import ArtifactStore, Recipe, disown, file_sha256
from support.dataset import CocoDataset, ImageRecord
from support.errors import NoSpaceError, ToolError, WrongDataError
from support.inputs import Geometry, InputFormat, letterbox, normalise, open_image
from support.progress import Progress

__all__ = ["Feed", "build_feed", "require_space"]

PIXELS, INDEX, JOURNAL = "pixels.u8", "index.json", "journal"
#: Raise when the same images would give other bytes.
VERSION = 2
#: Images decoded between two journal entries: about 0.1 s of work, so little is lost or waited for.
CHUNK = 16
#: Images that pay for starting a process.
IMAGES_PER_WORKER = 128

Indices = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Feed:
    """
    The network inputs of a data set, in ascending order of image id.

    Reads are independent of each other, so a feed may be used by several threads and sent to other processes.

    Parameters
    ----------
    folder : Path
        Where ``pixels.u8`` lies: one record of S × S × 3 grey levels an image, nothing between them.
    fmt : InputFormat
        Gives S and the normalisation.
    image_ids : ndarray of int64, shape (N,)
    sizes : ndarray of int32, shape (N, 2)
        Width and height of each image in pixels.
    checksums : ndarray of uint32, shape (N,)
        CRC-32 of each record.
    file_digests : tuple of str, length N
        SHA-256 of the image file of each record.
    """

    folder: Path
    fmt: InputFormat
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    checksums: NDArray[np.uint32]
    file_digests: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path, fmt: InputFormat) -> Feed:
        """Open a finished feed."""
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        ids, sizes = np.array(index["image_ids"], np.int64), np.array(index["sizes"], np.int32)
        checksums, file_digests = np.array(index["checksums"], np.uint32), tuple(index["file_digests"])
        return cls(folder, fmt, ids, sizes, checksums, file_digests)

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def scales(self) -> NDArray[np.float64]:
        """Image pixels per network pixel of every image, shape (N,)."""
        return np.array([Geometry.of(width, height, self.fmt.size).scale for width, height in self.sizes.tolist()])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids, geometry and checksums: equal digests mean equal inputs."""
        parts = (self.image_ids, self.sizes, self.checksums)
        text = json.dumps([self.fmt.size, *(part.tolist() for part in parts)], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def pixels(self, indices: Indices) -> NDArray[np.uint8]:
        """
        Read records.

        Parameters
        ----------
        indices : sequence of int
            Positions in the feed, from 0.

        Returns
        -------
        pixels : ndarray of uint8, shape (len(indices), S, S, 3)

        Raises
        ------
        WrongDataError
            If a record is not what was written.
        IndexError
            If a position is not in the feed.
        """
        pixels = np.empty((len(indices), self.fmt.size, self.fmt.size, 3), np.uint8)
        with self._open_pixels() as file:
            for place, index in enumerate(indices):
                self._read(file, int(index), pixels[place])
        return pixels

    def tensors(self, indices: Indices, *, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """
        Read records as network inputs.

        Parameters
        ----------
        indices : sequence of int
            Positions in the feed, from 0.
        out : ndarray of float32, shape (len(indices), 3, S, S), optional
            Where to write; reusing memory halves the time of large batches.

        Returns
        -------
        tensors : ndarray of float32, shape (len(indices), 3, S, S), C-contiguous

        Raises
        ------
        WrongDataError, IndexError
            As `pixels` does.
        ValueError
            If `out` has another shape or type.
        """
        size = self.fmt.size
        tensors = np.empty((len(indices), 3, size, size), np.float32) if out is None else out
        if tensors.shape != (len(indices), 3, size, size) or tensors.dtype != np.float32:
            raise ValueError(f"{tensors.dtype} array of shape {tensors.shape} for {len(indices)} inputs of size {size}")
        # Image by image: the bytes are still in the processor's cache when they are normalised.
        record = np.empty((1, size, size, 3), np.uint8)
        with self._open_pixels() as file:
            for place, index in enumerate(indices):
                self._read(file, int(index), record[0])
                normalise(record, self.fmt, out=tensors[place : place + 1])
        return tensors

    def _open_pixels(self) -> BufferedReader:
        # Read, not mapped: the pages of a map count as this process's memory, up to the whole feed.
        try:
            return (self.folder / PIXELS).open("rb")
        except OSError as error:
            raise self._damaged(f"cannot be read: {error.strerror}") from error

    def _read(self, file: BufferedReader, index: int, record: NDArray[np.uint8]) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a feed of {len(self)} images")
        if _read_checksum(file, index, record) != self.checksums[index]:
            image_id, checksum = self.image_ids[index], self.checksums[index]
            raise self._damaged(f"record {index} (image id {image_id}) does not have its checksum {checksum:08x}")

    def _damaged(self, found: str) -> WrongDataError:
        disown(self.folder)
        return WrongDataError(
            f"{self.folder / PIXELS}: {found}",
            required="the feed as it was built",
            remedy="run again, which decodes the images anew; if this comes back, look at the disk",
        )


def build_feed(
    store: ArtifactStore, dataset: CocoDataset, fmt: InputFormat, progress: Progress, *, workers: int | None = None
) -> Feed:
    """
    Return the feed of a data set, decoding its images if the store does not hold it.

    A build that was killed goes on where it stopped. The store's key holds a hash of every image file, so a changed
    file is noticed whatever its time stamp; one that changes after it was hashed is not decoded.

    Parameters
    ----------
    store : ArtifactStore
    dataset : CocoDataset
    fmt : InputFormat
    progress : Progress
    workers : int, optional
        Processes to decode in; 1 decodes in this one. By default as many as there are processors and work for.

    Raises
    ------
    WrongDataError
        If an image is damaged, changes, or has not the size that the annotations state.
    NoSpaceError
        If the disk is too small.
    ToolError
        If a decoding process dies.
    """
    file_digests = _file_digests(dataset.images, progress)

    def build(folder: Path) -> dict[str, Any]:
        return _build(folder, dataset, file_digests, fmt, progress, workers or _default_workers(len(dataset.images)))

    recipe = _recipe(dataset, file_digests, fmt)
    artifact = store.get(recipe, "feed", build, resumable=True, self_verifying=(PIXELS,))
    return Feed.open(artifact.path, fmt)


def require_space(folder: Path, needed: int, what: str) -> None:
    """
    Check that a disk has room before something large is written to it.

    Parameters
    ----------
    folder : Path
        An existing folder on that disk.
    needed : int
        Bytes.
    what : str
        What is to be written.

    Raises
    ------
    NoSpaceError
        If less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpaceError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free",
            required=f"{needed / 2**20:.0f} MiB for {what}",
            remedy="free space, or use a folder on another disk",
        )


def _default_workers(images: int) -> int:
    # Of a container's processors only some may be ours; not every system can tell.
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, images // IMAGES_PER_WORKER))


def _recipe(dataset: CocoDataset, file_digests: Sequence[str], fmt: InputFormat) -> Recipe:
    return Recipe(
        kind="feed",
        version=VERSION,
        inputs={"images": _images_digest(dataset.images, file_digests), "sizes": dataset.size_digest},
        options={"size": fmt.size, "fill": list(fmt.fill)},
        # Decoders may round differently from release to release.
        tools={"pillow": PIL.__version__, "jpeg": str(features.version("libjpeg_turbo") or features.version("jpg"))},
    )


def _images_digest(images: Sequence[ImageRecord], file_digests: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for image, file_digest in zip(images, file_digests, strict=True):
        digest.update(json.dumps([image.id, image.file_name, file_digest]).encode())
    return digest.hexdigest()


def _file_digests(images: Sequence[ImageRecord], progress: Progress) -> list[str]:
    digests = []
    with progress.step("hashing images") as advance, ThreadPoolExecutor() as pool:
        for file_digest in pool.map(_file_digest, images):
            digests.append(file_digest)
            advance(len(digests), len(images))
    return digests


def _file_digest(image: ImageRecord) -> str:
    try:
        return file_sha256(image.path)
    except OSError as error:
        raise WrongDataError(f"{image.path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class _Chunk:
    """Some records to write, with the checksums an earlier, killed build noted for them."""

    file: Path
    fmt: InputFormat
    first: int
    images: tuple[ImageRecord, ...]
    file_digests: tuple[str, ...]
    noted: list[int] | None


def _build(
    folder: Path,
    dataset: CocoDataset,
    file_digests: Sequence[str],
    fmt: InputFormat,
    progress: Progress,
    workers: int,
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    chunks = _chunks(folder, dataset.images, file_digests, fmt)
    record_bytes = fmt.size * fmt.size * 3
    missing = sum(len(chunk.images) for chunk in chunks if chunk.noted is None)
    require_space(folder, missing * record_bytes, f"the feed of {missing} images")
    with (folder / PIXELS).open("ab") as file:
        file.truncate(len(dataset.images) * record_bytes)
    checksums = _write_chunks(folder, chunks, progress, min(workers, len(chunks)))
    in_order = [value for chunk in chunks for value in checksums[chunk.first]]
    _write_index(folder, dataset.images, in_order, file_digests)
    (folder / JOURNAL).unlink()
    return {"images": len(dataset.images), "workers": workers, "images_kept": len(dataset.images) - missing}


def _chunks(folder: Path, images: Sequence[ImageRecord], file_digests: Sequence[str], fmt: InputFormat) -> list[_Chunk]:
    noted, pixels = _read_journal(folder / JOURNAL), folder / PIXELS
    pieces = [(first, slice(first, first + CHUNK)) for first in range(0, len(images), CHUNK)]
    return [
        _Chunk(pixels, fmt, first, tuple(images[piece]), tuple(file_digests[piece]), noted.get(first))
        for first, piece in pieces
    ]


def _read_journal(path: Path) -> dict[int, list[int]]:
    noted = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for line in lines:
        # A killed build may leave half a line. A wrong number does no harm: the records are read and compared.
        with contextlib.suppress(ValueError, TypeError):
            first, *checksums = json.loads(line)
            noted[first] = checksums
    return noted


def _write_chunks(folder: Path, chunks: Sequence[_Chunk], progress: Progress, workers: int) -> dict[int, list[int]]:
    checksums: dict[int, list[int]] = {}
    images, done = sum(len(chunk.images) for chunk in chunks), 0
    with (
        (folder / JOURNAL).open("a", encoding="utf-8") as journal,
        progress.step("decoding images") as advance,
        contextlib.closing(_written(chunks, workers)) as results,
    ):
        for chunk, found in results:
            checksums[chunk.first] = found
            # The line break comes first, so that a torn line of an earlier build stays alone.
            journal.write("\n" + json.dumps([chunk.first, *found]))
            journal.flush()
            done += len(found)
            advance(done, images)
    return checksums


def _written(chunks: Sequence[_Chunk], workers: int) -> Generator[tuple[_Chunk, list[int]], None, None]:
    """Write chunks and give their checksums, in any order."""
    if workers == 1:
        yield from ((chunk, _write_chunk(chunk)) for chunk in chunks)
        return
    # Spawned, not forked: a copy of a process that has threads or a device open may hang.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        futures: Mapping[Future[list[int]], _Chunk] = {pool.submit(_write_chunk, chunk): chunk for chunk in chunks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise ToolError(
            f"a process that decoded images died: {error}", remedy="look for a memory limit; what is done is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends us in order
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _write_chunk(chunk: _Chunk) -> list[int]:
    if chunk.noted and chunk.noted == _checksums(chunk):
        return chunk.noted
    with chunk.file.open("r+b") as file:
        file.seek(chunk.first * chunk.fmt.size**2 * 3)
        files = zip(chunk.images, chunk.file_digests, strict=True)
        return [_write_record(file, image, file_digest, chunk.fmt) for image, file_digest in files]


def _checksums(chunk: _Chunk) -> list[int | None]:
    record = np.empty((chunk.fmt.size, chunk.fmt.size, 3), np.uint8)
    with chunk.file.open("rb") as file:
        return [_read_checksum(file, chunk.first + place, record) for place in range(len(chunk.images))]


def _read_checksum(file: BufferedReader, index: int, record: NDArray[np.uint8]) -> int | None:
    file.seek(index * record.nbytes)
    return zlib.crc32(record.data) if file.readinto(record.data) == record.nbytes else None


def _write_record(file: BufferedRandom, image: ImageRecord, file_digest: str, fmt: InputFormat) -> int:
    picture = open_image(image.path, file_digest)
    if picture.size != (image.width, image.height):
        found = f"{image.path} has {picture.width} x {picture.height} pixels"
        raise WrongDataError(found, required=f"{image.width} x {image.height}, as the annotations say")
    pixels, _ = letterbox(picture, fmt, name=str(image.path))
    file.write(pixels.data)
    return zlib.crc32(pixels.data)


def _write_index(
    folder: Path, images: Sequence[ImageRecord], checksums: Sequence[int], file_digests: Sequence[str]
) -> None:
    index = {
        "image_ids": [image.id for image in images],
        "sizes": [(image.width, image.height) for image in images],
        "checksums": checksums,
        "file_digests": file_digests,
    }
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
