"""What ``ais_infer`` and ``ais_bench`` tell about a run: the summary they write, and the lines they print."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.errors import WrongDataError
from support.plain_files import read_plain

__all__ = ["Printed", "Summary", "parse_output", "read_summary"]

#: Inside the result directory until November 2022, beside it since.
INSIDE, BESIDE = "sumary.json", "_summary.json"
#: Bytes of a summary; that of 5,000 images has 10 MB, most of it names of files.
MAX_BYTES = 2**28
NUMBER = r"([\d.eE+-]+)"
#: The label of the batch size changed in January 2023.
THROUGHPUT = re.compile(
    rf"throughput 1000\*batchsize(?:\.mean)?\({NUMBER}\)/NPU_compute_time\.mean\({NUMBER}\): {NUMBER}"
)
IMAGES_PER_RUN = re.compile(r"filesperbatch:(\d+)")


@dataclass(frozen=True)
class Summary:
    """
    The summary of one run.

    Parameters
    ----------
    path : Path
        Where it was read.
    compute_seconds : tuple of float
        Device compute time of every execution; empty where this version does not keep them.
    mean_seconds : float
        Their mean, as the tool computed it.
    throughput : float
        Images per second, as the tool computed it with the batch size it was told.
    files : frozenset of str or None
        Names of all result files of this run; None where it does not list them.
    """

    path: Path
    compute_seconds: tuple[float, ...]
    mean_seconds: float
    throughput: float
    files: frozenset[str] | None

    @property
    def batch(self) -> int:
        """Batch size the tool was told, or read from the model: the first generation takes 1 if it is not told."""
        return round(self.throughput * self.mean_seconds)


@dataclass(frozen=True)
class Printed:
    """
    What the tool printed about a run.

    `batch` is the batch size it was told, `mean_ms` the mean of an execution in milliseconds, `throughput` images per
    second, and `images_per_run` how many files it put into one execution, which is what the model takes; None if it did
    not say.
    """

    batch: float
    mean_ms: float
    throughput: float
    images_per_run: int | None


def read_summary(folder: Path) -> Summary | None:
    """
    Read the summary of a result directory; None if there is none.

    Raises
    ------
    WrongDataError
        If it is damaged, or if there are two.
    """
    places = [path for path in (folder / INSIDE, folder.with_name(folder.name + BESIDE)) if os.path.lexists(path)]
    if len(places) > 1:
        raise WrongDataError(f"{folder} has two summaries: {places[0]} and {places[1]}", remedy="remove the stale one")
    return _read(places[0]) if places else None


def _read(path: Path) -> Summary:
    try:
        facts = json.loads(read_plain(path, MAX_BYTES).decode("utf-8"))
        times = [_milliseconds(item) for item in facts.get("npu_compute_time_list", [])]
        mean, throughput = float(facts["NPU_compute_time"]["mean"]), float(facts["throughput"])
        files = _files(facts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WrongDataError(f"{path}: {type(error).__name__}: {error}", required="a summary of ais_bench") from error
    if not all(math.isfinite(value) and value > 0 for value in (*times, mean, throughput, mean * throughput)):
        raise WrongDataError(
            f"{path}: a duration or the throughput is not a positive number", required="milliseconds, images per second"
        )
    return Summary(path, tuple(time / 1e3 for time in times), mean / 1e3, throughput, files)


def _milliseconds(item: Any) -> float:
    # Runs in several threads are told by their start and end.
    return float(item[1]) - float(item[0]) if isinstance(item, list) else float(item)


def _files(facts: Mapping[str, Any]) -> frozenset[str] | None:
    samples = facts.get("filesinfo")
    if not samples:
        return None
    # Paths of another host: the names are what counts.
    return frozenset(re.split(r"[/\\]", name)[-1] for sample in samples.values() for name in sample["outfiles"])


def parse_output(text: str) -> Printed | None:
    """
    Find the line of throughput among what the tool printed; None if there is none.

    Progress bars overwrite themselves on the same stream, and lines of native code come late.

    Examples
    --------
    >>> parse_output("[INFO] throughput 1000*batchsize.mean(8)/NPU_compute_time.mean(31.25): 256.0").throughput
    256.0
    """
    found, taken = THROUGHPUT.search(text), IMAGES_PER_RUN.search(text)
    if found is None:
        return None
    try:
        batch, mean_ms, throughput = map(float, found.groups())
    except ValueError:  # the line was cut
        return None
    return Printed(batch, mean_ms, throughput, int(taken[1]) if taken else None)
