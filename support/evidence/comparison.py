"""What changed from one release to the next: accuracy, speed, limits, and what was shipped."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from support.errors import NoTimingError
from support.evidence.bundle import Bundle
from support.evidence.measured import Measured
from support.evidence.spec_changes import Change, LimitChange, limit_changes, setting_changes

__all__ = ["Comparison", "Figures", "compare"]

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Figures:
    """A figure before and after; None where it was not measured."""

    before: float | None
    after: float | None

    def __str__(self) -> str:
        shown = " -> ".join("none" if side is None else f"{side:.3f}" for side in (self.before, self.after))
        if self.before is None or self.after is None:
            return shown
        return f"{shown} ({self.after - self.before:+.3f})"


@dataclass(frozen=True)
class Comparison:
    """
    Two releases, side by side.

    Parameters
    ----------
    ap : mapping of int to Figures
        AP in points by batch size.
    by_category : mapping of str to Figures
        AP in points by class, at the spec's ladder batch.
    throughput : mapping of int to Figures
        Images per second by batch size.
    limits : tuple of LimitChange
        Limits that changed, the loosened ones first.
    settings : mapping of str to Change
        Everything else in the spec that decides what is measured and how, by its key.
    models : mapping of str to Change
        SHA-256 of checkpoint and artifacts that changed, by kind and batch size.
    """

    ap: Mapping[int, Figures]
    by_category: Mapping[str, Figures]
    throughput: Mapping[int, Figures]
    limits: tuple[LimitChange, ...]
    settings: Mapping[str, Change]
    models: Mapping[str, Change]

    @property
    def loosened(self) -> tuple[LimitChange, ...]:
        """Limits that let more pass than before."""
        return tuple(limit for limit in self.limits if limit.loosened)

    @property
    def lines(self) -> tuple[str, ...]:
        """The comparison in words, what needs a look first."""
        return (
            *map(str, self.limits),
            *(f"setting {key}: {change}" for key, change in self.settings.items()),
            *(f"AP at batch {batch}: {change}" for batch, change in self.ap.items()),
            *(f"AP of class {name}: {change}" for name, change in self.by_category.items()),
            *(f"images/s at batch {batch}: {change}" for batch, change in self.throughput.items()),
            *(f"{name}: {change}" for name, change in self.models.items()),
        )


def compare(old: Bundle, new: Bundle) -> Comparison:
    """
    Compare two releases, each by what its own bundle shows.

    Parameters
    ----------
    old, new : Bundle
        Evidence of the earlier and of the later release; they need not be of one model or spec.

    Raises
    ------
    SuiteError
        If a pass of either cannot be scored.
    """
    before, after = Measured(old), Measured(new)
    models = _paired(_models(before), _models(after))
    return Comparison(
        ap=_figures(_ap(before), _ap(after)),
        by_category=_figures(_category_ap(before), _category_ap(after)),
        throughput=_figures(_throughput(before), _throughput(after)),
        limits=limit_changes(before.spec, after.spec),
        settings=setting_changes(before.spec, after.spec),
        models={name: Change(*pair) for name, pair in models.items() if pair[0] != pair[1]},
    )


def _ap(measured: Measured) -> dict[int, float]:
    return {batch: measured.candidate(batch).figures.ap for batch in measured.document.passes}


def _category_ap(measured: Measured) -> dict[str, float]:
    batch = measured.spec.accuracy.ladder_batch
    if batch not in measured.document.passes:
        return {}
    names = {row["id"]: str(row["name"]) for row in measured.truth.coco["categories"]}
    by_category = measured.candidate(batch).figures.by_category
    return {f"{names[key]} (id {key})": value for key, value in by_category.items()}


def _throughput(measured: Measured) -> dict[int, float]:
    found = {}
    for batch in measured.document.passes:
        # A batch size without usable samples is one that was not measured.
        with suppress(NoTimingError):
            found[batch] = measured.throughput(batch).images_per_second
    return found


def _models(measured: Measured) -> dict[str, str]:
    document = measured.document
    found = {f"{item.kind}{'' if item.batch is None else f' bs{item.batch}'}": item.sha256 for item in document.models}
    return {**({"checkpoint": document.checkpoint.sha256} if document.checkpoint else {}), **found}


def _figures(before: Mapping[K, float], after: Mapping[K, float]) -> dict[K, Figures]:
    return {key: Figures(*pair) for key, pair in _paired(before, after).items()}


def _paired(before: Mapping[K, V], after: Mapping[K, V]) -> dict[K, tuple[V | None, V | None]]:
    return {key: (before.get(key), after.get(key)) for key in {**before, **after}}
