"""One verdict from the evidence of several hosts: the same model on a 310P3, judged by what a 310 and a T4 measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from support.errors import NoTimingError, UsageError, WrongDataError
from support.evidence.bundle import Bundle
from support.evidence.measured import Measured
from support.evidence.model import EvidenceDocument
from support.evidence.replay import is_release, replay, required_clauses, session_reasons
from support.spec import AcceptanceSpec, Baseline
from support.timing import ThroughputEstimate
from support.verdict import ClauseVerdict, ReleaseVerdict, judge, release_verdict

__all__ = ["join", "measured_baselines"]

#: What a clock can measure. Throughput by one of them says nothing about throughput by another.
_TIMERS = ("NPU_compute_time", "wall time")


def join(bundles: Sequence[Bundle], *, release: bool = False) -> ReleaseVerdict:
    """
    Join the evidence of one model from several hosts into one verdict.

    Every bundle is replayed, and the clauses of all of them decide together; where several hosts have the same clause,
    the worst counts. A throughput that one of the bundles measured under the protocol of a published table, of the same
    chip, takes the place of the table where another bundle is compared with it. One that was measured otherwise is
    shown beside the table and not judged.

    Parameters
    ----------
    bundles : sequence of Bundle
        One of each chip.
    release : bool
        Whether anything short of a release is ``not-a-release``.

    Raises
    ------
    UsageError
        If there are fewer than two, or two of one chip.
    WrongDataError
        If they are not of the same checkpoint, data set and spec; the message names the hashes that differ.
    """
    _require_several(bundles)
    for other in bundles[1:]:
        _require_same_model(bundles[0], other)
    documents = [bundle.document for bundle in bundles]
    tables = _measured_tables(documents[0].spec, bundles)
    clauses = [clause for bundle in bundles for clause in _clauses(bundle, tables)]
    return release_verdict(
        clauses,
        dict.fromkeys(key for document in documents for key in required_clauses(document)),
        scope="replay",
        subject=f"{documents[0].spec.name} on {' + '.join(document.asked.device for document in documents)}",
        session_reasons=[reason for document in documents for reason in session_reasons(document, release=release)],
        is_release=all(is_release(document) for document in documents),
    )


def measured_baselines(spec: AcceptanceSpec, bundles: Sequence[Bundle]) -> dict[str, Baseline]:
    """
    Give what the bundles measured in the place of published tables, by the names of those tables.

    What was timed otherwise than its table, or not at every batch size, takes nothing's place and is left out.

    Parameters
    ----------
    spec : AcceptanceSpec
        Names the tables.
    bundles : sequence of Bundle
        One of each chip.
    """
    return {name: table.baseline for name, table in _measured_tables(spec, bundles).items() if not table.problem}


def _require_several(bundles: Sequence[Bundle]) -> None:
    chips = [bundle.document.asked.chip for bundle in bundles]
    if len(bundles) < 2:
        raise UsageError(f"{len(bundles)} bundle to join", required="bundles of at least two chips")
    repeated = sorted({chip for chip in chips if chips.count(chip) > 1})
    if repeated:
        folders = [str(bundle.folder) for bundle in bundles if bundle.document.asked.chip == repeated[0]]
        raise UsageError(f"several bundles of a {repeated[0]}: {', '.join(folders)}", required="one of each chip")


def _require_same_model(first: Bundle, other: Bundle) -> None:
    before, after = _identity(first.document), _identity(other.document)
    for what, digest in before.items():
        if digest is None or digest != after[what]:
            raise WrongDataError(
                f"{other.folder} is not of the {what} of {first.folder}: {after[what] or 'none is told'}",
                required=f"{digest or 'both to tell it'}",
                remedy="join bundles of one model only",
            )


def _identity(document: EvidenceDocument) -> dict[str, str | None]:
    checkpoint, dataset = document.checkpoint, document.dataset
    return {
        "checkpoint": checkpoint.sha256 if checkpoint else None,
        "annotations": dataset.annotation_digest if dataset else None,
        "image sizes": dataset.size_digest if dataset else None,
        "spec": document.spec_digest,
    }


@dataclass(frozen=True)
class _Table:
    """Throughput that a bundle measured on the chip of a published table."""

    published: Baseline
    document: EvidenceDocument
    estimates: tuple[ThroughputEstimate, ...]

    @property
    def problem(self) -> str:
        """What keeps the measurement from replacing the published table; empty if nothing does."""
        wanted = _kind(self.published.timer, self.published.includes_copies)
        others = [item.timer for item in self.estimates if _kind(item.timer, item.includes_copies) != wanted]
        if others:
            return f"timed as {others[0]!r}, the published table as {self.published.timer!r}"
        missing = set(self.document.spec.batch_sizes) - {item.batch for item in self.estimates}
        return f"not measured at batch {', '.join(map(str, sorted(missing)))}" if missing else ""

    @property
    def baseline(self) -> Baseline:
        """The measurement with its passport, in the place of the published table."""
        document, first = self.document, self.estimates[0]
        return self.published.model_copy(
            update={
                "runtime": f"measured on {document.asked.device}",
                "timer": first.timer,
                "includes_copies": first.includes_copies,
                "precision": document.precision,
                "input": document.spec.dataset.images,
                "warm_up": f"{document.spec.throughput.warm_up_calls} calls or more, until steady",
                "count": f"one pass over {first.images} images",
                "driver": document.environment.driver or "not told",
                "date": document.ended.date(),
                "source": f"evidence of the {self.published.chip} joined here",
                "images_per_second": {item.batch: item.images_per_second for item in self.estimates},
            }
        )

    @property
    def figures(self) -> str:
        """The measurement in words."""
        return ", ".join(f"batch {item.batch} {item.images_per_second:.3f}" for item in self.estimates)


def _kind(timer: str, includes_copies: bool) -> tuple[str, bool]:
    return next((kind for kind in _TIMERS if timer.startswith(kind)), timer), includes_copies


def _measured_tables(spec: AcceptanceSpec, bundles: Sequence[Bundle]) -> dict[str, _Table]:
    # By the name of the published table that each stands for.
    by_chip = {bundle.document.asked.chip: bundle for bundle in bundles}
    tables = {}
    for name in (spec.throughput.baseline_310, spec.throughput.baseline_t4):
        published = spec.baselines[name]
        estimates = _estimates(by_chip[published.chip]) if published.chip in by_chip else ()
        if estimates:
            tables[name] = _Table(published, by_chip[published.chip].document, estimates)
    return tables


def _estimates(bundle: Bundle) -> tuple[ThroughputEstimate, ...]:
    measured, estimates = Measured(bundle), []
    for batch in sorted(bundle.document.passes):
        # A batch size without usable samples is one that was not measured.
        with suppress(NoTimingError):
            estimates.append(measured.throughput(batch))
    return tuple(estimates)


def _clauses(bundle: Bundle, tables: Mapping[str, _Table]) -> Iterator[ClauseVerdict]:
    measured, rules = Measured(bundle), bundle.document.spec.throughput
    compared = {
        "throughput_vs_310": rules.baseline_310,
        "throughput_best_vs_310": rules.baseline_310,
        "throughput_vs_t4": rules.baseline_t4,
        "throughput_best_vs_t4": rules.baseline_t4,
    }
    for clause in replay(bundle).clauses:
        table = tables.get(compared.get(clause.clause, ""))
        # What replay found edited has no number and stays as it is, like what somebody answers for.
        fixed = not clause.readings or clause.reason == "waived"
        verdict = clause if table is None or fixed else _against(table, clause, measured)
        yield verdict.model_copy(update={"origin": {**verdict.origin, "measured on": bundle.document.asked.device}})


def _against(table: _Table, clause: ClauseVerdict, measured: Measured) -> ClauseVerdict:
    if table.problem:
        note = f"measured on {table.document.asked.device} and not judged: {table.figures} images/s; {table.problem}"
        return clause.model_copy(update={"findings": (*clause.findings, note)})
    measurement = (
        measured.speed.best_vs_baseline(clause.clause, table.baseline)
        if clause.batch is None
        else measured.speed.vs_baseline(clause.clause, clause.batch, table.baseline)
    )
    return judge(clause.clause, measured.spec.clauses[clause.clause], measurement, batch=clause.batch)
