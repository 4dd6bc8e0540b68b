"""What ``ais_infer`` and ``ais_bench`` tell about a run: the summary they write, and the lines they print."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.errors import WrongDataError

__all__ = ["Printed", "Summary", "parse_output", "read_summary"]

#: Inside the result directory until November 2022, beside it since.
INSIDE, BESIDE = "sumary.json", "_summary.json"
#: The label of the batch size changed in January 2023.
THROUGHPUT = re.compile(
    r"throughput 1000\*batchsize(?:\.mean)?\(([^)]+)\)/NPU_compute_time\.mean\(([^)]+)\): (\S+)",
)


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


@dataclass(frozen=True)
class Printed:
    """The line of throughput: batch size, mean milliseconds of an execution, and images per second."""

    batch: float
    mean_ms: float
    throughput: float


def read_summary(folder: Path) -> Summary | None:
    """
    Read the summary of a result directory; None if there is none.

    Raises
    ------
    WrongDataError
        If it is damaged, or if there are two.
    """
    places = [path for path in (folder / INSIDE, folder.with_name(folder.name + BESIDE)) if path.is_file()]
    if len(places) > 1:
        raise WrongDataError(f"{folder} has two summaries: {places[0]} and {places[1]}", remedy="remove the stale one")
    return _read(places[0]) if places else None


def _read(path: Path) -> Summary:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        times = [_milliseconds(item) for item in facts.get("npu_compute_time_list", [])]
        mean = float(facts["NPU_compute_time"]["mean"])
        summary = Summary(
            path, tuple(time / 1e3 for time in times), mean / 1e3, float(facts["throughput"]), _files(facts)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongDataError(f"{path}: {type(error).__name__}: {error}", required="a summary of ais_bench") from error
    if not all(math.isfinite(value) and value > 0 for value in (*summary.compute_seconds, summary.mean_seconds)):
        raise WrongDataError(f"{path}: a duration that is not positive", required="milliseconds")
    return summary


def _milliseconds(item: Any) -> float:
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

    Progress bars overwrite themselves on the same stream.

    Examples
    --------
    >>> parse_output("[INFO] throughput 1000*batchsize.mean(8)/NPU_compute_time.mean(31.25): 256.0").throughput
    256.0
    """
    for line in re.split(r"[\r\n]+", text):
        match = THROUGHPUT.search(line)
        if match:
            return Printed(*(float(part) for part in match.groups()))
    return None
