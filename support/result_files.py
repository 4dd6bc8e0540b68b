"""Raw heads in files, one a head and image, as ``ais_infer`` and ``ais_bench`` write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.ascend.bench_summary import Summary, read_summary
from support.dataset import CocoDataset, ImageRecord
from support.detections import Decoder, Detections
from support.engine import Pass, Plan, joined_heads
from support.errors import NoDataError, WrongDataError
from support.heads import Heads, head_shapes
from support.inputs import Geometry
from support.progress import Progress
from support.spec import Model
from support.timing import CallSample, PassTiming

__all__ = ["ResultFolder", "find_results", "results_pass", "timing_of"]

#: Images decoded at a time.
GROUP = 4
NAME = re.compile(r"(.+)_(\d+)\.(bin|npy)")
TIMER = "npu_compute_time_list of ais_bench, device compute only"


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
    elif "{batch}" not in template and not only:
        raise NoDataError(
            f"there are no results {own}", remedy="a folder bs<batch> for each batch size, or --batch-sizes"
        )
    if not root.is_dir():
        raise NoDataError(f"there are no results {root}", remedy=f"put them there, or correct --results={template}")
    inner = [path for path in sorted(root.iterdir()) if path.is_dir()]
    if any(NAME.fullmatch(path.name) for path in root.iterdir()) or not inner:
        return root
    if len(inner) > 1:
        raise WrongDataError(f"{root} holds several runs: {', '.join(path.name for path in inner[:5])}", required="one")
    return inner[0]


@dataclass(frozen=True)
class ResultFolder:
    """
    The result files of one run, by image.

    Parameters
    ----------
    folder : Path
        Where they are.
    model : support.spec.Model
        Tells which heads there must be, by the number of their elements: numbers and order differ among versions.
    files : mapping of str to tuple of Path
        Files by the stem of the image.
    """

    folder: Path
    model: Model
    files: Mapping[str, tuple[Path, ...]]

    @classmethod
    def open(cls, folder: Path, model: Model, summary: Summary | None, known: Sequence[str]) -> ResultFolder:
        """
        List a folder.

        Raises
        ------
        WrongDataError
            If there are files of images nobody knows, or of an earlier run; the message names the first five.
        """
        files: dict[str, list[Path]] = {}
        surplus, stale = [], []
        for path in sorted(folder.iterdir()):
            match = NAME.fullmatch(path.name)
            if not match or match[1] not in known:
                surplus += [] if path.suffix == ".json" else [path.name]
            elif summary and summary.files is not None and path.name not in summary.files:
                stale.append(path.name)
            else:
                files.setdefault(match[1], []).append(path)
        _refuse(folder, "holds files that are no result of this data set", surplus)
        _refuse(folder, "holds stale files, which the summary does not list", stale)
        return cls(folder, model, {stem: tuple(paths) for stem, paths in files.items()})

    def require(self, stems: Sequence[str]) -> None:
        """
        Refuse a folder in which a head of an image is missing or of another size.

        Raises
        ------
        WrongDataError
            With the first five images or files.
        """
        _refuse(self.folder, "lacks the results of images", [stem for stem in stems if stem not in self.files])
        sizes = [4 * _count(shape) for shape in head_shapes(self.model, 1)]
        incomplete = [stem for stem in stems if len(self.files[stem]) != len(sizes)]
        _refuse(self.folder, f"does not hold {len(sizes)} files of images", incomplete)
        wrong = [name for stem in stems for name in self._wrong_sizes(stem, sizes)]
        _refuse(self.folder, "holds truncated files, or such of another type or network:", wrong)

    def _wrong_sizes(self, stem: str, sizes: Sequence[int]) -> Iterator[str]:
        left = Counter(sizes)
        for path in self.files[stem]:
            size = path.stat().st_size if path.suffix == ".bin" else np.load(path, mmap_mode="r").nbytes
            if left[size] <= 0:
                yield f"{path.name} ({size} bytes)"
            left[size] -= 1

    def heads(self, stems: Sequence[str]) -> Heads:
        """Raw heads of some images."""
        return joined_heads([self._of_image(stem) for stem in stems])

    def _of_image(self, stem: str) -> Heads:
        by_count = {array.size: array for array in map(_read, self.files[stem])}
        arrays = tuple(by_count[_count(shape)].reshape(shape) for shape in head_shapes(self.model, 1))
        levels = len(arrays) // 2
        return Heads(arrays[:levels], arrays[levels:])


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def _read(path: Path) -> NDArray[np.float32]:
    if path.suffix == ".bin":
        return np.fromfile(path, "<f4").astype(np.float32, copy=False)
    array = np.load(path, allow_pickle=False)
    if array.dtype != np.float32:
        raise WrongDataError(f"{path} is {array.dtype}", required="float32")
    return np.asarray(array, np.float32).ravel()


def _refuse(folder: Path, problem: str, names: Sequence[str]) -> None:
    if names:
        more = ", ..." if len(names) > 5 else ""
        raise WrongDataError(
            f"{folder} {problem}: {len(names)}: {', '.join(names[:5])}{more}",
            required="the files of one run over this data set, and nothing else",
            remedy="run again into an empty directory",
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

    Nothing is decoded from pictures: their sizes are in the annotations.

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
        If files are missing, truncated, stale or surplus.
    """
    summary = read_summary(folder)
    results = ResultFolder.open(folder, model, summary, list(_stems(everything.images)))
    images = [dataset.images[row] for row in plan.order]
    stems = list(_stems(images))
    results.require(stems)
    parts, golden = [], []
    with progress.step(plan.title) as advance:
        for start in range(0, len(images), GROUP):
            heads = results.heads(stems[start : start + GROUP])
            parts.append(decode_images(decoder, heads, images[start : start + GROUP], model))
            if start < plan.golden:
                golden.append(heads.rows(slice(0, plan.golden - start)))
            advance(min(start + GROUP, len(images)), len(images))
    timing = timing_of(summary, batch, len(everything.images), plan.chip)
    return Pass(Detections.concatenate(parts), timing, joined_heads(golden), 0)


def decode_images(decoder: Decoder, heads: Heads, images: Sequence[ImageRecord], model: Model) -> Detections:
    """Decode the heads of some images, whose geometry follows from their sizes."""
    scales = [Geometry.of(image.width, image.height, model.image_size).scale for image in images]
    sizes = np.array([(image.width, image.height) for image in images], np.int32)
    return decoder.decode(heads, np.array([image.id for image in images], np.int64), np.array(scales), sizes)


def _stems(images: Sequence[ImageRecord]) -> Iterator[str]:
    """Names of results: the tools cut the name of an input at its first dot."""
    stems = [Path(image.file_name).stem.split(".")[0] for image in images]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise WrongDataError(f"several images would have results named {', '.join(twice[:5])}", required="one each")
    yield from stems


def timing_of(summary: Summary | None, batch: int, images: int, chip: str) -> PassTiming:
    """
    Return the timing of a run of the tools, without samples where they kept none, or not one for each batch.

    The last batch is padded, and is timed like any other.
    """
    seconds = summary.compute_seconds if summary else ()
    calls = -(-images // batch)
    fits = len(seconds) == calls
    counts = [batch] * (calls - 1) + [images - batch * (calls - 1)]
    why = (
        f"none: {len(seconds)} executions in the summary instead of {calls}" if summary else "none: there is no summary"
    )
    return PassTiming(
        chip=chip,
        batch=batch,
        calls=tuple(CallSample(s, n) for s, n in zip(seconds, counts, strict=True)) if fits else (),
        warm_up=(),
        timer=TIMER if fits else why,
        includes_copies=False,
    )
