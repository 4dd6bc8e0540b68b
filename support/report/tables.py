"""What a bundle says as tables of words and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from support.evidence.model import EvidenceDocument, LadderRecord, SelfTestRecord
from support.report.scored_run import ScoredRun
from support.report.text import measured, number
from support.scoring import FIGURES
from support.spec import AcceptanceSpec, Baseline, Throughput
from support.timing import ThroughputEstimate
from support.verdict import ClauseVerdict, Reading

__all__ = [
    "MarginCell",
    "MarginGroup",
    "MarginRow",
    "Table",
    "ap_figures",
    "ap_of_classes",
    "baselines_beside",
    "environment",
    "ladder",
    "limits",
    "margins",
    "models",
    "passports",
    "tensor_errors",
    "throughput",
]

SIGN = {"min": "≥", "max": "≤"}
NONE = "–"
#: Clauses that measure how far raw tensors move from one stage to the next.
TENSOR_CLAUSES = ("simplified_equals_raw", "stage_tensors")
FIGURE_NAMES: Mapping[str, str] = {
    "ap": "AP",
    "ap50": "AP at IoU 0.50",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP, small objects",
    "ap_medium": "AP, medium objects",
    "ap_large": "AP, large objects",
    "ar1": "AR, 1 detection",
    "ar10": "AR, 10 detections",
    "ar100": "AR, 100 detections",
    "ar_small": "AR, small objects",
    "ar_medium": "AR, medium objects",
    "ar_large": "AR, large objects",
}


@dataclass(frozen=True)
class Table:
    """
    A table: the first cell of a row names it, and every column has a head.

    `words` is the number of columns, from the left, that hold words; the others hold numbers.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


@dataclass(frozen=True)
class MarginCell:
    """
    One measured number beside its limit.

    `state` is the word of the clause, ``finding`` for one that only informs, or empty where nothing was required;
    `value` and `margin` are empty where nothing was measured, and `reason` then tells why.
    """

    state: str = ""
    value: str = ""
    margin: str = ""
    reason: str = ""


@dataclass(frozen=True)
class MarginRow:
    """One quantity of a clause, its limit, and a cell for every batch size (or one, if it is about the whole run)."""

    quantity: str
    limit: str
    cells: tuple[MarginCell, ...]


@dataclass(frozen=True)
class MarginGroup:
    """A clause: its name, what it says, and its quantities."""

    clause: str
    title: str
    rows: tuple[MarginRow, ...]


def margins(document: EvidenceDocument, batches: Sequence[int | None]) -> tuple[MarginGroup, ...]:
    """
    List every quantity with its margins.

    Parameters
    ----------
    document : EvidenceDocument
        The evidence.
    batches : sequence of int or None
        Batch sizes that become cells; ``[None]`` for the clauses about the whole run.
    """
    chosen = [clause for clause in document.release.clauses if clause.batch in batches]
    groups = []
    for name, members in groupby(chosen, key=lambda clause: clause.clause):
        known = document.spec.clauses.get(name)
        rows = _margin_rows({clause.batch: clause for clause in members}, batches)
        groups.append(MarginGroup(name, known.title if known else "", rows))
    return tuple(groups)


def _margin_rows(clauses: Mapping[int | None, ClauseVerdict], batches: Sequence[int | None]) -> tuple[MarginRow, ...]:
    limits = {item.name: _limit(item) for clause in clauses.values() for item in clause.readings}
    return tuple(
        MarginRow(quantity, limit, tuple(_cell(clauses.get(batch), quantity) for batch in batches))
        for quantity, limit in (limits or {"without a number": ""}).items()
    )


def _cell(clause: ClauseVerdict | None, quantity: str) -> MarginCell:
    if clause is None:
        return MarginCell()
    reading = next((item for item in clause.readings if item.name == quantity), None)
    state = "finding" if clause.informative else clause.word
    if reading is None:
        return MarginCell(state, reason=clause.reason or clause.word)
    # In a rejected clause only the quantities outside their limits are red.
    inside = "accepted" if reading.inside and state == "rejected" else state
    return MarginCell(inside, number(reading.value), f"{reading.margin:+.3g}", clause.reason)


def _limit(reading: Reading) -> str:
    return f"{SIGN[reading.direction]} {measured(reading.limit, reading.unit)}"


def ladder(record: LadderRecord) -> Table:
    """Tell AP from the checkpoint to the candidate, and the change at every stage."""
    stages = {**record.stages, **record.compiled}
    rows = _steps(stages) + [(f"{name} (graph that keeps its Pads)", *cells) for name, *cells in _steps(record.edited)]
    return Table("AP from stage to stage, in points", ("stage", "AP", "change"), tuple(rows))


def _steps(stages: Mapping[str, float]) -> list[tuple[str, ...]]:
    values = list(stages.values())
    changes = [NONE, *(f"{after - before:+.4f}" for before, after in pairwise(values))]
    return [(name, f"{value:.4f}", change) for (name, value), change in zip(stages.items(), changes, strict=True)]


def tensor_errors(document: EvidenceDocument) -> Table | None:
    """Tell how far raw tensors moved at the stages that compare them; None if no such clause was measured."""
    found = [clause for clause in document.release.clauses if clause.clause in TENSOR_CLAUSES]
    rows = tuple(
        (clause.label, reading.name, measured(reading.value, reading.unit), _limit(reading))
        for clause in found
        for reading in clause.readings
    )
    return Table("Tensor errors", ("clause", "quantity", "largest", "limit"), rows, words=2) if rows else None


def ap_figures(run: ScoredRun) -> Table:
    """Put the twelve COCO figures of the candidate, at every batch size, beside those of the reference."""
    columns = {"reference": run.reference_figures} if run.reference_figures else {}
    columns |= {f"batch {batch}": figures for batch, figures in run.figures.items()}
    rows = tuple(
        (FIGURE_NAMES[name], *(_points(getattr(figures, name)) for figures in columns.values())) for name in FIGURES
    )
    return Table("COCO figures, in points", ("figure", *columns), rows)


def ap_of_classes(run: ScoredRun) -> Table:
    """Put the AP of each class beside that of the reference; classes that lost most come first."""
    before = run.reference_figures.by_category if run.reference_figures else {}
    after = run.candidate.by_category
    rows = tuple(
        (
            run.category(key),
            _points(before.get(key, math.nan)),
            _points(after[key]),
            _change(after[key] - before.get(key, math.nan)),
        )
        for key in run.classes
    )
    caption = f"AP by class at batch size {run.worst_batch}, in points"
    return Table(caption, ("class", "reference", "candidate", "change"), rows)


def _points(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.3f}"


def _change(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:+.3f}"


def baselines_beside(rules: Throughput, baselines: Mapping[str, Baseline], chip: str) -> tuple[Baseline, ...]:
    """Give the tables a chip is seen beside: 310, 310P and T4, and its own."""
    names = (rules.baseline_310, rules.same_chip.get("310P"), rules.baseline_t4, rules.same_chip.get(chip))
    return tuple(baselines[name] for name in dict.fromkeys(names) if name)


def throughput(estimates: Iterable[ThroughputEstimate], baselines: Sequence[Baseline]) -> Table:
    """Tell the throughput at each batch size, and its ratio to other tables."""
    head = ("batch size", "images/s", "interval", "p50 ms", "p99 ms", "calls")
    rows = tuple(
        (
            str(item.batch),
            f"{item.images_per_second:.2f}",
            f"{item.lower:.2f} to {item.upper:.2f}",
            f"{item.p50_ms:.2f}",
            f"{item.p99_ms:.2f}",
            str(item.calls),
            *(_ratio(item, table) for table in baselines),
        )
        for item in estimates
    )
    return Table(
        "Throughput, and its ratio to the tables below; judged is the lower end of a wider one, see the margins",
        (*head, *(f"ratio to {table.chip}" for table in baselines)),
        rows,
    )


def _ratio(estimate: ThroughputEstimate, baseline: Baseline) -> str:
    figure = baseline.images_per_second.get(estimate.batch)
    return f"{estimate.images_per_second / figure:.2f}" if figure else NONE


def passports(baselines: Iterable[Baseline], includes_copies: bool | None) -> Table:
    """
    Tell how each table was measured, and what makes it unlike this run.

    Parameters
    ----------
    baselines : iterable of Baseline
        The tables.
    includes_copies : bool or None
        Whether this run's timer includes copies between host and device; None if nothing was timed.
    """
    rows = tuple(
        (
            table.chip,
            _unlike(table, includes_copies),
            table.runtime,
            table.timer,
            table.precision,
            table.input,
            table.warm_up,
            f"{table.date}: {table.source}",
        )
        for table in baselines
    )
    head = ("chip", "like for like", "runtime", "timer", "precision", "input", "warm-up", "source")
    return Table("How these tables were measured", head, rows, words=len(head))


def _unlike(baseline: Baseline, includes_copies: bool | None) -> str:
    found = []
    if includes_copies not in (baseline.includes_copies, None):
        found.append(f"timed {'with' if baseline.includes_copies else 'without'} copies")
    if baseline.input.startswith("random"):
        found.append("random input")
    return f"not like for like: {', '.join(found)}" if found else "yes"


def limits(spec: AcceptanceSpec) -> Table:
    """List every limit of the spec with where it comes from."""
    rows = tuple(
        (
            name,
            key,
            f"{SIGN[limit.direction]} {measured(limit.number, limit.unit)}",
            str(limit.date),
            "; ".join(part for part in (limit.source, limit.distribution) if part),
        )
        for name, clause in spec.clauses.items()
        for key, limit in clause.limits.items()
    )
    return Table("Limits and their sources", ("clause", "quantity", "limit", "date", "source"), rows, words=5)


def environment(document: EvidenceDocument) -> Table:
    """Tell on what, with what and on which data this was measured."""
    here, code, data = document.environment, document.code, document.dataset
    dirty = {True: ", with changes that are not committed", False: "", None: ", state unknown"}[code.dirty]
    facts = {
        "device": document.asked.device,
        "simulated": here.simulation,
        "chip": " ".join(part for part in (here.chip, here.chip_model) if part),
        "serial number": here.serial,
        "driver": here.driver,
        "firmware": here.firmware,
        "processor": f"{here.cpu}, {here.cores} cores, {here.memory_gib:.1f} GiB",
        "system": here.system,
        "python": here.python,
        "packages": ", ".join(f"{name} {version}" for name, version in here.packages.items()),
        "precision": document.precision,
        "suite": f"{code.revision}{dirty}",
        "measuring code": code.measuring,
        "self-test of the suite": _selftest(document.selftest) if document.selftest else "",
        "spec": f"{document.spec.name} {document.spec.version}, {document.spec_digest}",
        "images": f"{data.images} of {document.spec.dataset.image_count}" if data else "",
        "annotations": data.annotation_digest if data else "",
        "image sizes": data.size_digest if data else "",
        "checkpoint": document.checkpoint.sha256 if document.checkpoint else "",
        "measured": f"{document.started:%Y-%m-%d %H:%M:%S} to {document.ended:%Y-%m-%d %H:%M:%S} {document.ended:%Z}",
    }
    rows = tuple((name, value) for name, value in facts.items() if value)
    return Table("Environment", ("what", "value"), rows, words=2)


def _selftest(found: SelfTestRecord) -> str:
    caught = found.faults - len(found.missed)
    code = "this code" if found.same_code else "other code than this"
    return (
        f"{caught} of {found.faults} faults caught, {len(found.false_alarms)} of {found.clean_runs} clean runs with a "
        f"false alarm, {found.ended:%Y-%m-%d %H:%M:%S %Z}, of {code}"
    )


def models(document: EvidenceDocument) -> Table | None:
    """List the artifacts of the run with their hashes; None if there are none."""
    rows = tuple((item.kind, str(item.batch or NONE), item.sha256) for item in document.models)
    return Table("Artifacts", ("stage", "batch size", "sha256"), rows, words=3) if rows else None
