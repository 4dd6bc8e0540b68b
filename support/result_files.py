"""Raw heads in files, one a head and image, as ``ais_infer`` and ``ais_bench`` write them."""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from support.ascend.bench_summary import Summary, read_summary
from support.dataset import CocoDataset, ImageRecord
from support.detections import Decoder, Detections
from support.engine import Pass, Plan, joined_heads
from support.errors import NoDataError, NotFiniteError, WrongDataError
from support.heads import Heads, head_shapes
from support.inputs import Geometry
from support.progress import Advance, Progress
from support.spec import Model
from support.timing import CallSample, PassTiming

__all__ = ["Frames", "ResultFolder", "decoded_results", "find_results", "results_pass", "timing_of"]

#: Images decoded at a time.
GROUP = 4
NAME = re.compile(r"(.+)_\d+\.(bin|npy)")
OTHER_BATCH = re.compile(r"bs\d+")
TIMER = "npu_compute_time_list of ais_bench, device compute only"
SURPLUS = "holds files that are no result of this data set in BIN or NPY format"
STALE = "holds stale files, which the summary does not list"
NEWER = "holds files that are newer than the summary, as of a run that did not end"
AGAIN = "run again into an empty directory"
COPIED = f"{AGAIN}; if only a copy lost the times of the files, touch the summary"


def find_results(template: str, batch: int, *, only: bool) -> Path:
    """
    Find the result directory of a batch size.

    Parameters
    ----------
    template : str
        A path with ``{batch}``, or a folder that holds ``bs<batch>`` folders or, if there is one batch size only, the
        files themselves. A folder in between with the time of the run as its name is passed over.
    batch : int
        The batch size.
    only : bool
        Whether this is the only batch size of the run.

    Raises
    ------
    NoDataError
        If there is no such folder.
    WrongDataError
        If there are the results of several runs in it.
    """
    root = Path(template.replace("{batch}", str(batch)))
    own = root / f"bs{batch}"
    if own.is_dir():
        root = own
    elif _others(root) or ("{batch}" not in template and not only):
        raise NoDataError(
            f"there are no results {own}", remedy="a folder bs<batch> for each batch size, or --batch-sizes"
        )
    if not root.is_dir():
        raise NoDataError(f"there are no results {root}", remedy=f"put them there, or correct --results={template}")
    if any(NAME.fullmatch(path.name) for path in root.iterdir()):
        return root
    inner = sorted(path for path in root.iterdir() if path.is_dir())
    if len(inner) > 1:
        raise WrongDataError(f"{root} holds several runs: {', '.join(path.name for path in inner[:5])}", required="one")
    return inner[0] if inner else root


def _others(root: Path) -> bool:
    return any(OTHER_BATCH.fullmatch(path.name) and path.is_dir() for path in root.glob("bs*"))


@dataclass(frozen=True)
class ResultFolder:
    """
    The result files of one run, by image.

    Parameters
    ----------
    folder : Path
        Where they are.
    shapes : tuple of tuple of int
        Heads of one image, class heads first. Files are told apart by their size: numbers and order differ among
        versions.
    files : mapping of str to tuple of Path
        Files by the stem of the image.
    """

    folder: Path
    shapes: tuple[tuple[int, ...], ...]
    files: Mapping[str, tuple[Path, ...]]

    @classmethod
    def open(cls, folder: Path, model: Model, summary: Summary | None, known: Collection[str]) -> ResultFolder:
        """
        List a folder.

        Parameters
        ----------
        folder : Path
            Result directory.
        model : support.spec.Model
            Tells which heads there must be.
        summary : Summary or None
            Of the run.
        known : collection of str
            Stems of all images that may have results.

        Raises
        ------
        WrongDataError
            If there are files of images nobody knows, of an earlier run, or of a later one that did not end; the
            message names the first five. Also if two heads of the model have the same size.
        """
        shapes, stems = _shapes_by_size(model), frozenset(known)
        files: dict[str, list[Path]] = {}
        faulty: dict[str, list[str]] = {SURPLUS: [], STALE: [], NEWER: []}
        for path in sorted(path for path in folder.iterdir() if path.suffix != ".json"):
            fault = _fault(path, stems, summary)
            if fault:
                faulty[fault].append(path.name)
            else:
                files.setdefault(path.name.rpartition("_")[0], []).append(path)
        for fault, names in faulty.items():
            _refuse(folder, fault, names, COPIED if fault == NEWER else AGAIN)
        return cls(folder, shapes, {stem: tuple(paths) for stem, paths in files.items()})

    def require(self, stems: Sequence[str]) -> None:
        """
        Refuse a folder in which a head of an image is missing or of another size.

        Raises
        ------
        WrongDataError
            With the first five images, or the five smallest files.
        """
        _refuse(self.folder, "lacks the results of images", [stem for stem in stems if stem not in self.files])
        count = len(self.shapes)
        incomplete = [f"{stem} ({len(self.files[stem])})" for stem in stems if len(self.files[stem]) != count]
        _refuse(self.folder, f"does not hold {count} files of images", incomplete)
        wrong = sorted(pair for stem in stems for pair in self._wrong_sizes(stem))
        named = [f"{name} ({size} bytes)" for size, name in wrong]
        _refuse(self.folder, "holds truncated files, or such of another type or network", named)

    def _wrong_sizes(self, stem: str) -> Iterator[tuple[int, str]]:
        left = {_bytes(shape) for shape in self.shapes}
        for path in self.files[stem]:
            size = _payload(path)
            if size not in left:
                yield size, path.name
            left.discard(size)

    def heads(self, stems: Sequence[str]) -> Heads:
        """
        Read the raw heads of some images.

        Raises
        ------
        WrongDataError
            If a file cannot be read, or says of itself that it holds something else.
        """
        return joined_heads([self._of_image(stem) for stem in stems])

    def _of_image(self, stem: str) -> Heads:
        try:
            by_size = {_payload(path): path for path in self.files[stem]}
            arrays = tuple(_read(by_size[_bytes(shape)], shape) for shape in self.shapes)
        except (OSError, KeyError) as error:
            found = f"{self.folder}: files of {stem} have changed since they were listed: {error}"
            raise WrongDataError(found, required="files that nobody writes to", remedy=AGAIN) from error
        levels = len(arrays) // 2
        return Heads(arrays[:levels], arrays[levels:])


def _shapes_by_size(model: Model) -> tuple[tuple[int, ...], ...]:
    shapes = head_shapes(model, 1)
    if len({_bytes(shape) for shape in shapes}) < len(shapes):
        raise WrongDataError(
            f"two heads of this network have files of the same size: {shapes}",
            required="heads that can be told apart",
            remedy="judge the model itself, without --results and with --route=worker",
        )
    return shapes


def _fault(path: Path, stems: Collection[str], summary: Summary | None) -> str:
    match, found = NAME.fullmatch(path.name), path.lstat()
    # A link may lead anywhere, and a pipe would be waited for.
    if not match or match[1] not in stems or not stat.S_ISREG(found.st_mode):
        return SURPLUS
    if summary is None:
        return ""
    if summary.files is not None and path.name not in summary.files:
        return STALE
    # The summary is written last. What is newer comes from a run into the same directory that was broken off.
    return NEWER if found.st_mtime_ns > summary.path.stat().st_mtime_ns else ""


def _bytes(shape: Sequence[int]) -> int:
    return 4 * int(np.prod(shape))


def _payload(path: Path) -> int:
    if path.suffix == ".bin":
        return path.stat().st_size
    try:
        return int(open_memmap(path, mode="r").nbytes)
    except Exception:  # numpy raises whatever the damaged header leads to
        return 0


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    try:
        if path.suffix == ".bin":
            return np.fromfile(path, "<f4").astype(np.float32, copy=False).reshape(shape)
        array = open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise WrongDataError(f"{path} cannot be read: {error}") from error
    if array.dtype != np.float32 or array.shape != shape:
        raise WrongDataError(f"{path} is {array.dtype} {list(array.shape)}", required=f"float32 {list(shape)}")
    return np.array(array)


def _refuse(folder: Path, problem: str, names: Sequence[str], remedy: str = AGAIN) -> None:
    if names:
        more = ", ..." if len(names) > 5 else ""
        raise WrongDataError(
            f"{folder} {problem}: {len(names)}: {', '.join(names[:5])}{more}",
            required="the files of one run over this data set, and nothing else",
            remedy=remedy,
        )


class Frames(Protocol):
    """Ids, scales, and sizes (width and height in pixels) of images, by row."""

    @property
    def image_ids(self) -> NDArray[np.int64]:
        """Ids, shape (N,)."""

    @property
    def scales(self) -> NDArray[np.float64]:
        """Image pixels per network pixel, shape (N,)."""

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Width and height, shape (N, 2)."""


def decoded_results(
    results: ResultFolder, stems: Sequence[str], frames: Frames, plan: Plan, decoder: Decoder, advance: Advance
) -> tuple[Detections, Heads]:
    """
    Decode result files, a few images at a time.

    Parameters
    ----------
    results : ResultFolder
        The files, complete for these stems.
    stems : sequence of str
        What they are called, in the order of the plan.
    frames : Frames
        The images by row.
    plan : Plan
        Which rows, and how many raw heads are kept.
    decoder : Decoder
        Of the network.
    advance : callable
        Told of every group.

    Returns
    -------
    detections : Detections
        Of all images, in their order.
    golden : Heads
        Raw heads of the leading ones; without any level if the plan keeps none.

    Raises
    ------
    WrongDataError
        If a file is damaged.
    NotFiniteError
        With the image and its row.
    """
    parts, golden = [], []
    for start in range(0, len(stems), GROUP):
        heads = results.heads(stems[start : start + GROUP])
        parts.append(_decode(decoder, heads, frames, plan.order[start : start + GROUP]))
        if start < plan.golden:
            golden.append(heads.rows(slice(0, plan.golden - start)))
        advance(min(start + GROUP, len(stems)), len(stems))
    return Detections.concatenate(parts), joined_heads(golden)


def _decode(decoder: Decoder, heads: Heads, frames: Frames, rows: Sequence[int]) -> Detections:
    index = np.asarray(rows)
    try:
        return decoder.decode(heads, frames.image_ids[index], frames.scales[index], frames.sizes[index])
    except NotFiniteError as error:
        row = rows[error.slot]
        found = f"image {frames.image_ids[row]}: {error.found}"
        raise NotFiniteError(found, required=error.required, remedy=error.remedy, row=row) from None


@dataclass(frozen=True)
class _ImageFrames:
    """Frames from the annotations: no picture is opened."""

    image_ids: NDArray[np.int64]
    scales: NDArray[np.float64]
    sizes: NDArray[np.int32]

    @classmethod
    def of(cls, images: Sequence[ImageRecord], image_size: int) -> _ImageFrames:
        return cls(
            np.array([image.id for image in images], np.int64),
            np.array([Geometry.of(image.width, image.height, image_size).scale for image in images]),
            np.array([(image.width, image.height) for image in images], np.int32),
        )


def results_pass(
    folder: Path,
    batch: int,
    dataset: CocoDataset,
    everything: CocoDataset,
    decoder: Decoder,
    plan: Plan,
    model: Model,
    progress: Progress,
) -> Pass:
    """
    Decode the result files of one run.

    Parameters
    ----------
    folder : Path
        From `find_results`.
    batch : int
        Batch size of the run.
    dataset, everything : CocoDataset
        The images that are judged, and all that may have results.
    decoder : Decoder
        Of the network.
    plan : Plan
        Rows of `dataset.images`.
    model : support.spec.Model
        The network.
    progress : Progress
        Told of every group of images.

    Raises
    ------
    WrongDataError
        If files are missing, truncated, stale or surplus, or if the summary is that of another batch size.
    ContractViolationError
        If values are not finite.
    """
    summary = read_summary(folder)
    results = ResultFolder.open(folder, model, summary, _stems(everything.images))
    stems = _stems([dataset.images[row] for row in plan.order])
    results.require(stems)
    timing = timing_of(summary, batch, len(results.files), plan.chip)
    frames = _ImageFrames.of(dataset.images, model.image_size)
    with progress.step(plan.title) as advance:
        detections, golden = decoded_results(results, stems, frames, plan, decoder, advance)
    return Pass(detections, timing, golden, 0)


def _stems(images: Sequence[ImageRecord]) -> list[str]:
    """Names of results: the tools cut the name of an input at its first dot."""
    stems = [Path(image.file_name).name.split(".")[0] for image in images]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise WrongDataError(f"several images would have results named {', '.join(twice[:5])}", required="one each")
    return stems


def timing_of(summary: Summary | None, batch: int, images: int, chip: str) -> PassTiming:
    """
    Return the timing of a run of the tools, without samples where they kept none, or not one for each batch.

    The last batch is padded, and is timed like any other.

    Parameters
    ----------
    summary : Summary or None
        Of the run.
    batch : int
        Its batch size.
    images : int
        How many images it ran over.
    chip : str
        What it ran on.

    Raises
    ------
    WrongDataError
        If the run had another batch size.
    """
    seconds = summary.compute_seconds if summary else ()
    calls = -(-images // batch)
    if len(seconds) == calls:
        counts = [batch] * (calls - 1) + [images - batch * (calls - 1)]
        samples = tuple(CallSample(*pair) for pair in zip(seconds, counts, strict=True))
        return PassTiming(chip, batch, samples, (), TIMER, includes_copies=False)
    if summary and summary.batch > 0 and len(seconds) == -(-images // summary.batch):
        raise WrongDataError(
            f"{summary.path} is of a run at batch {summary.batch}: {len(seconds)} executions for {images} images",
            required=f"batch {batch}: {calls} executions",
            remedy="correct --results or --batch-sizes",
        )
    return PassTiming(chip, batch, (), (), _why_untimed(summary, calls), includes_copies=False)


def _why_untimed(summary: Summary | None, calls: int) -> str:
    if summary is None:
        return "none: there is no summary"
    if not summary.compute_seconds:
        return "none: this version of ais_infer kept no list of times"
    return f"none: the summary tells of {len(summary.compute_seconds)} executions instead of {calls}"
