"""Throughput clauses: the lower bound of what was measured, as a ratio to a baseline."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from support.baselines import SavedThroughput
from support.errors import NoBaselineError, NoTimingError
from support.spec import Baseline
from support.timing import ThroughputEstimate
from support.verdict import Measurement

__all__ = ["SAVED", "best_vs_baseline", "regression", "vs_baseline", "vs_saved"]

#: Where the origin of a regression holds the saved figure, in images per second.
SAVED = "saved images/s"


def vs_baseline(estimate: ThroughputEstimate, baseline: Baseline, *, images: int) -> Measurement:
    """
    Compare a pass with the published figure of the same batch size.

    Parameters
    ----------
    estimate : ThroughputEstimate
        Throughput of the pass.
    baseline : Baseline
        The published table.
    images : int
        Images of the full data set; a pass over fewer is partial.

    Returns
    -------
    measurement : Measurement
        ``ratio`` is the lower end of the judged interval over the published figure; its optimistic value is the upper.

    Raises
    ------
    NoBaselineError
        If the table has no figure for the batch size.
    """
    figure = baseline.images_per_second.get(estimate.batch)
    if figure is None:
        raise NoBaselineError(
            f"the {baseline.chip} table ({baseline.source}) has no figure for batch {estimate.batch}",
            required=f"one of {sorted(baseline.images_per_second)}",
        )
    return _published(estimate, baseline, figure, count=estimate.images, expected=images)


def best_vs_baseline(
    estimates: Sequence[ThroughputEstimate], baseline: Baseline, *, batch_sizes: Collection[int], images: int
) -> Measurement:
    """
    Compare the best batch size measured with the best of a published table, whichever batch size that is.

    Parameters
    ----------
    estimates : sequence of ThroughputEstimate
        One for each batch size measured.
    baseline : Baseline
        The published table.
    batch_sizes : collection of int
        Batch sizes of the spec; a best of fewer is partial.
    images : int
        Images of the full data set.

    Raises
    ------
    NoTimingError
        If nothing was measured.
    """
    if not estimates:
        raise NoTimingError("no batch size was timed", required=f"batch sizes {sorted(batch_sizes)}")
    best = max(estimates, key=lambda item: item.images_per_second)
    # Count a batch size once however often it was timed, or a repeat would stand in for a missing one.
    timed = {item.batch: min(item.images, images) for item in estimates if item.batch in batch_sizes}
    expected = images * len(batch_sizes)
    found = _published(best, baseline, baseline.best, count=sum(timed.values()), expected=expected)
    # Another batch size may be the best in truth.
    hope = max(item.judged_upper for item in estimates) / baseline.best
    return replace(found, optimistic={"ratio": hope})


def regression(estimate: ThroughputEstimate, saved: SavedThroughput, *, images: int) -> Measurement:
    """
    Compare a pass with the best accepted saved run of the same machine.

    Parameters
    ----------
    estimate : ThroughputEstimate
        Throughput of the pass.
    saved : SavedThroughput
        From `support.baselines.best_accepted`.
    images : int
        Images of the full data set.
    """
    record = saved.record
    passport = (
        f"saved run: {record.images_per_second:.3f} images/s over {record.calls} calls, {saved.saved}, "
        f"{saved.file.parent.name}/{saved.file.name}"
    )
    # As Python writes it, a figure is the same number when it is read back.
    origin = {"timer": estimate.timer, "baseline": passport, SAVED: repr(record.images_per_second)}
    return vs_saved(estimate, record.images_per_second, images=images, findings=(passport,), origin=origin)


def vs_saved(
    estimate: ThroughputEstimate,
    figure: float,
    *,
    images: int,
    findings: tuple[str, ...],
    origin: Mapping[str, str],
) -> Measurement:
    """
    Compare a pass with a saved figure.

    Parameters
    ----------
    estimate : ThroughputEstimate
        Throughput of the pass.
    figure : float
        Images per second of the saved run.
    images : int
        Images of the full data set.
    findings, origin
        Of the saved run.
    """
    return Measurement(
        values={"ratio": estimate.judged_lower / figure},
        optimistic={"ratio": estimate.judged_upper / figure},
        count=estimate.images,
        expected=images,
        findings=(_measured(estimate), *findings),
        origin=origin,
    )


def _published(
    estimate: ThroughputEstimate, baseline: Baseline, figure: float, *, count: int, expected: int
) -> Measurement:
    passport = _passport(baseline, figure)
    return Measurement(
        values={"ratio": estimate.judged_lower / figure},
        optimistic={"ratio": estimate.judged_upper / figure},
        count=count,
        expected=expected,
        findings=(_measured(estimate), *_not_like_for_like(estimate, baseline), passport),
        origin={"timer": estimate.timer, "baseline": passport},
    )


def _measured(estimate: ThroughputEstimate) -> str:
    passes = f" in {estimate.passes} passes" if estimate.passes > 1 else ""
    return (
        f"measured: {estimate.images_per_second:.3f} images/s, {estimate.confidence:.0%} interval {estimate.lower:.3f} "
        f"to {estimate.upper:.3f}, judged on {estimate.judged_lower:.3f} to {estimate.judged_upper:.3f}, over "
        f"{estimate.calls} calls of batch {estimate.batch}{passes} ({_dependence(estimate)}); latency of a call p50 "
        f"{estimate.p50_ms:.2f}, p90 {estimate.p90_ms:.2f}, p99 {estimate.p99_ms:.2f} ms; {estimate.timer}"
    )


def _dependence(estimate: ThroughputEstimate) -> str:
    if estimate.autocorrelation is None:
        return "too few to know their dependence: taken as independent"
    return (
        f"{estimate.blocks} blocks of at least {estimate.block_calls} calls, "
        f"autocorrelation time {estimate.autocorrelation:.1f} calls"
    )


def _passport(baseline: Baseline, figure: float) -> str:
    return (
        f"baseline: {figure:g} images/s on {baseline.chip}, {baseline.runtime}; {baseline.timer}; "
        f"precision {baseline.precision}; input {baseline.input}; warm-up {baseline.warm_up}; count {baseline.count}; "
        f"driver {baseline.driver}; {baseline.date}; {baseline.source}"
    )


def _not_like_for_like(estimate: ThroughputEstimate, baseline: Baseline) -> tuple[str, ...]:
    """Say what makes the two figures differ in kind; the rule is applied all the same, as its source applied it."""
    kinds = {True: "with copies", False: "without copies"}
    differences = []
    if estimate.includes_copies != baseline.includes_copies:
        differences.append(f"measured {kinds[estimate.includes_copies]}, baseline {kinds[baseline.includes_copies]}")
    if baseline.input.startswith("random"):
        differences.append("baseline on random input")
    return (f"not like for like: {'; '.join(differences)}",) if differences else ()
