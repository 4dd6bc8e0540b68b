"""The guide's input files: one ``.bin`` a picture, for tools that read tensors from a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.dataset import CocoDataset
from support.errors import NoDataError, UsageError, WrongDataError
from support.feed import Feed, require_space
from support.progress import Progress

__all__ = ["check_bins", "write_bins"]

#: Ending of a file that is not finished; a killed run may leave one.
PART = ".part"


def write_bins(feed: Feed, dataset: CocoDataset, folder: Path, progress: Progress) -> int:
    """
    Write every input of a feed as ``<stem of the image file>.bin``: float32, 1 × 3 × S × S, little-endian.

    A file appears whole or not at all, and files that are right already are left alone, so an interrupted run can be
    repeated.

    Parameters
    ----------
    feed : Feed
        What to write.
    dataset : CocoDataset
        Gives the names; it must hold every image of the feed.
    folder : Path
        Made if needed; it may hold nothing but these files.
    progress : Progress
        Told of every file.

    Returns
    -------
    written : int
        Files written now.

    Raises
    ------
    NoSpaceError
        If the disk is too small.
    WrongDataError
        If the folder holds anything else, or two images would get the same name.
    UsageError
        If `folder` is a file.
    """
    names = _names(feed, dataset)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", required="a folder for the input files")
    folder.mkdir(parents=True, exist_ok=True)
    present = {path.name for path in folder.iterdir()}
    _refuse("holds other files", folder, present - set(names) - {name + PART for name in names})
    missing = len(set(names) - present)
    require_space(folder, missing * _file_bytes(feed), f"{missing} input files")
    written = 0
    with progress.step("writing input files") as advance:
        for index, name in enumerate(names):
            written += _write(feed, index, folder / name)
            advance(index + 1, len(names))
    return written


def check_bins(feed: Feed, dataset: CocoDataset, folder: Path) -> None:
    """
    Check that a folder holds exactly the inputs of a feed.

    Parameters
    ----------
    feed : Feed
        What the files must hold.
    dataset : CocoDataset
        Gives the names; it must hold every image of the feed.
    folder : Path
        Where the files lie.

    Raises
    ------
    NoDataError
        If there is no such folder.
    WrongDataError
        If a file is missing, surplus, of the wrong size, or differs from the feed in a single bit; the message names
        the five worst.
    """
    names = _names(feed, dataset)
    if not folder.is_dir():
        raise NoDataError(f"{folder} is not a folder", required=f"a folder with {len(names)} input files")
    present = {path.name for path in folder.iterdir()}
    _refuse("lacks files", folder, set(names) - present)
    _refuse("holds other files", folder, present - set(names))
    wrong = (name for name in names if (folder / name).stat().st_size != _file_bytes(feed))
    _refuse(f"holds files that do not have {_file_bytes(feed)} bytes", folder, wrong)
    different = Counter({name: _different_values(feed, index, folder / name) for index, name in enumerate(names)})
    worst = (f"{name} ({count} values)" for name, count in different.most_common() if count)
    _refuse("holds files that differ from the feed", folder, worst, in_order=True)


def _names(feed: Feed, dataset: CocoDataset) -> list[str]:
    stems = {image.id: Path(image.file_name).stem for image in dataset.images}
    ids = feed.image_ids.tolist()
    unknown = [image_id for image_id in ids if image_id not in stems]
    if unknown:
        raise WrongDataError(f"{len(unknown)} images of the feed are not in the data set: ids {unknown[:5]}")
    names = [f"{stems[image_id]}.bin" for image_id in ids]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise WrongDataError(f"several images would be written as {', '.join(twice[:5])}", required="one file an image")
    return names


def _refuse(problem: str, folder: Path, names: Iterable[str], *, in_order: bool = False) -> None:
    """Raise if there are any such names."""
    found = list(names) if in_order else sorted(names)
    if found:
        more = ", ..." if len(found) > 5 else ""
        raise WrongDataError(
            f"{folder} {problem}: {len(found)}: {', '.join(found[:5])}{more}",
            required="exactly the input files of this data set",
            remedy="give an empty folder and write them again",
        )


def _file_bytes(feed: Feed) -> int:
    return 3 * feed.fmt.size**2 * np.dtype("<f4").itemsize


def _tensor(feed: Feed, index: int) -> NDArray[np.float32]:
    return feed.tensors([index]).astype("<f4", copy=False)


def _write(feed: Feed, index: int, path: Path) -> bool:
    content = _tensor(feed, index).tobytes()
    if path.is_file() and path.read_bytes() == content:
        return False
    part = path.with_name(path.name + PART)
    part.write_bytes(content)
    part.replace(path)
    return True


def _different_values(feed: Feed, index: int, path: Path) -> int:
    # As integers: a NaN equals nothing, and 0.0 equals -0.0.
    found, required = np.fromfile(path, "<u4"), _tensor(feed, index).view("<u4").ravel()
    return int(np.count_nonzero(found != required))
