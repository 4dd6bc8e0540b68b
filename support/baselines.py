"""Saved throughput: what a run stores with pytest-benchmark, and which stored run a later one is compared with."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from support.errors import NoBaselineError, UsageError, WrongDataError
from support.plain_files import read_plain
from support.verdict import ReleaseVerdict

if TYPE_CHECKING:
    from support.timing import ThroughputEstimate

__all__ = [
    "SavedThroughput",
    "ThroughputRecord",
    "best_accepted",
    "machine_identity",
    "saved_files",
    "throughput_record",
    "verdict_record",
]

#: Bytes of a saved run; every call that was timed is in it.
MAX_BYTES = 2**28
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(gt=0)]
_Text = Annotated[str, Field(min_length=1)]


class ThroughputRecord(BaseModel):
    """
    The throughput of one pass as it is stored: `extra_info` of a pytest-benchmark entry.

    The fields are the figures of `ThroughputEstimate` for one pass, with the name of the spec and the identity of the
    machine. An interval without an upper end has None there, since JSON has no infinity.
    """

    model_config = ConfigDict(frozen=True)

    spec: _Text
    machine: _Text
    chip: _Text
    batch: _Count
    timer: _Text
    includes_copies: bool
    confidence: Annotated[float, Field(gt=0, lt=1)]
    images_per_second: _Positive
    lower: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    upper: _Positive | None
    real_images_per_second: _Positive
    calls: _Count
    images: _Count
    p50_ms: _Positive
    p90_ms: _Positive
    p99_ms: _Positive

    def same_case(self, other: ThroughputRecord) -> bool:
        """Whether both are of one spec, chip and batch size."""
        return (self.spec, self.chip, self.batch) == (other.spec, other.chip, other.batch)


@dataclass(frozen=True)
class SavedThroughput:
    """A stored record, the file it is in, when it was saved, and whether its session ended *accepted*."""

    record: ThroughputRecord
    file: Path
    saved: str
    accepted: bool


def throughput_record(estimate: ThroughputEstimate, *, spec: str, machine: str) -> ThroughputRecord:
    """
    Make the record of a pass.

    Parameters
    ----------
    estimate : ThroughputEstimate
        What was measured.
    spec : str
        Name of the spec it was measured under.
    machine : str
        From `machine_identity`.
    """
    fields = dataclasses.asdict(estimate)
    fields["upper"] = estimate.upper if math.isfinite(estimate.upper) else None
    return ThroughputRecord(spec=spec, machine=machine, **fields)


def verdict_record(verdict: ReleaseVerdict | None) -> dict[str, Any] | None:
    """Return what a saved run keeps of the verdict of its session; None for a session that had none."""
    if verdict is None:
        return None
    return verdict.model_dump(mode="json", include={"word", "scope", "subject", "is_release", "reasons"})


def machine_identity(machine_info: Mapping[str, Any], chip_serial: str = "") -> str:
    """
    Name a machine by what does not change from run to run.

    Parameters
    ----------
    machine_info : mapping
        As pytest-benchmark gathers it; host name, processor brand and number of processors are used.
    chip_serial : str, optional
        Serial number or UUID of the accelerator.

    Examples
    --------
    >>> machine_identity({"node": "rack7", "cpu": {"brand_raw": "Kunpeng 920", "count": 96}}, "0x4c")
    'rack7, 96 x Kunpeng 920, chip 0x4c'
    """
    cpu = machine_info.get("cpu") or {}
    # The brand is missing on many aarch64 hosts; the architecture is then all there is.
    brand = cpu.get("brand_raw") or machine_info.get("machine") or "unknown processor"
    chip = f", chip {chip_serial}" if chip_serial else ""
    return f"{machine_info.get('node') or 'unknown host'}, {cpu.get('count', '?')} x {brand}{chip}"


def saved_files(storage: str) -> tuple[Path, ...]:
    """
    List the saved runs of a pytest-benchmark storage, of every platform folder in it.

    Parameters
    ----------
    storage : str
        Value of ``--benchmark-storage``: a folder, with or without ``file://``.

    Raises
    ------
    UsageError
        If the storage is not a folder; only files are read.
    """
    scheme, separator, location = storage.rpartition("://")
    if separator and scheme != "file":
        raise UsageError(
            f"--benchmark-storage={storage}: the regression clause reads saved runs from files only",
            required="a folder, or file://FOLDER",
        )
    root, name = Path(location), "[0-9][0-9][0-9][0-9]*_*.json"
    # pytest-benchmark's folders carry the Python version; a baseline must survive its upgrade.
    return tuple(sorted([*root.glob(name), *root.glob(f"*/{name}")]))


def best_accepted(files: Iterable[Path], current: ThroughputRecord) -> SavedThroughput:
    """
    Find the run that the current one is compared with.

    It is the fastest of the accepted runs of the same spec, chip, batch size, machine and timer. The fastest and not
    the latest, so that many small losses in a row cannot each be within the limit.

    Parameters
    ----------
    files : iterable of Path
        Saved runs, from `saved_files`.
    current : ThroughputRecord
        What was measured now.

    Raises
    ------
    NoBaselineError
        If no saved run qualifies; the message counts what was found instead.
    WrongDataError
        If a file is not a saved run or its figures are damaged.
    """
    read = tuple(files)
    alike = [entry for path in read for entry in _entries(path) if entry.record.same_case(current)]
    here = [entry for entry in alike if entry.record.machine == current.machine]
    timed = [entry for entry in here if entry.record.timer == current.timer]
    accepted = [entry for entry in timed if entry.accepted]
    if not accepted:
        raise NoBaselineError(
            f"no saved throughput of {current.spec} on {current.chip} at batch {current.batch} to compare with: "
            + _account(read, alike, here, timed),
            required=f"an accepted run of this machine ({current.machine}), timed as {current.timer!r}",
            remedy="run once with --benchmark-autosave and without --benchmark-compare, and let it end accepted",
        )
    return max(accepted, key=lambda entry: entry.record.images_per_second)


def _account(
    files: Sequence[Path],
    alike: Sequence[SavedThroughput],
    here: Sequence[SavedThroughput],
    timed: Sequence[SavedThroughput],
) -> str:
    if not files:
        return "there are no saved runs"
    if not alike:
        return f"{len(files)} saved runs, none of this spec, chip and batch size"
    elsewhere = sorted({entry.record.machine for entry in alike} - {entry.record.machine for entry in here})
    counts = {
        f"of another machine ({'; '.join(elsewhere)})": len(alike) - len(here),
        "timed differently": len(here) - len(timed),
        "not accepted": len(timed),
    }
    return f"{len(alike)} saved, " + ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _entries(path: Path) -> list[SavedThroughput]:
    try:
        run = json.loads(read_plain(path, MAX_BYTES).decode("utf-8"))
        accepted = (run.get("verdict") or {}).get("word") == "accepted"
        # Benchmarks of other things lie in the same files; only ours carry a throughput.
        found = [info for info in (entry["extra_info"] for entry in run["benchmarks"]) if "images_per_second" in info]
        return [
            SavedThroughput(ThroughputRecord.model_validate(info), path, str(run["datetime"]), accepted)
            for info in found
        ]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"extra_info.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        problem = f"not readable as JSON: {error}"
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"not the structure of a saved run: {type(error).__name__}: {error}"
    raise WrongDataError(
        f"{path}: {problem}", required="a run saved by pytest-benchmark", remedy="move the file out of the storage"
    )
