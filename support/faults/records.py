"""Faults of the evidence: bundles that were damaged, or edited and sealed again."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from support.errors import SuiteError
from support.evidence.bundle import Bundle, read_bundle, write_bundle
from support.evidence.collection import Session, write_evidence
from support.evidence.model import EVIDENCE, EvidenceDocument
from support.evidence.replay import BUNDLE, replay
from support.faults.bench import BATCH, Bench
from support.faults.fault import Registry
from support.measuring import verdict_of
from support.results import Results
from support.verdict import ClauseVerdict, failure, release_verdict

__all__ = ["REGISTRY"]

REGISTRY = Registry("evidence")
EDITED = "the bundle was edited"
JUDGED = ("coverage", "score_agreement", "accuracy_guide_floor", "accuracy_measured_drop", "suspicious_gain")


def _written(bench: Bench) -> Path:
    """Copy the evidence of a clean run."""
    folder = bench.new_folder("evidence") / "bundle"
    shutil.copytree(bench.once("evidence", lambda: _made(bench)), folder)
    return folder


def _made(bench: Bench) -> Path:
    """Write the evidence of a clean run in which some clauses were judged."""
    started = dt.datetime.now(dt.timezone.utc)
    with ExitStack() as stack:
        run = bench.replayed(stack)
        results = Results(run)
        verdicts = [verdict_of(name, results, batch) for name in JUDGED for batch in run.spec.batch_sizes]
    required = run.spec.required(mode="build", chip="cpu", scopes=frozenset({"gate", "throughput"}))
    release = release_verdict(verdicts, required, scope="gate", subject=f"{run.spec.name} on cpu")
    session = Session(run.options, run.spec, run.capabilities, (), started, run, results, release)
    return write_evidence(bench.new_folder("evidence", keep=True) / "bundle", session, images=False)


def _judged_again(folder: Path, clause: str, batch: int | None = None) -> ClauseVerdict:
    try:
        again = replay(read_bundle(folder))
    except SuiteError as error:
        return failure(BUNDLE, error)
    found = [verdict for verdict in again.clauses if (verdict.clause, verdict.batch) == (clause, batch)]
    return found[0] if found else ClauseVerdict(clause=clause, batch=batch, word="accepted")


def _sealed_again(folder: Path, edit: Callable[[EvidenceDocument], EvidenceDocument]) -> Path:
    """Edit a bundle and seal it with the suite's own tools, as somebody would who knows them."""
    bundle = read_bundle(folder)
    return _rewritten(bundle, edit(bundle.document))


def _rewritten(bundle: Bundle, document: EvidenceDocument) -> Path:
    return write_bundle(
        bundle.folder.with_name("edited"),
        document,
        detections=bundle.passes,
        reference=bundle.reference,
        truth=bundle.truth,
        pictures={},
    )


@REGISTRY.add("evidence", "evidence", reason="wrong-data")
def evidence_truncated(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """The record of the evidence ends in its middle."""
    folder = _written(bench)
    path = folder / EVIDENCE
    path.write_bytes(path.read_bytes()[:-200])
    return _judged_again(folder, BUNDLE)


@REGISTRY.add("evidence", "evidence", reason="wrong-data")
def evidence_edited(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """A verdict in the record was changed by hand."""
    folder = _written(bench)
    path = folder / EVIDENCE
    path.write_text(path.read_text(encoding="utf-8").replace("undetermined", "accepted"), encoding="utf-8")
    return _judged_again(folder, BUNDLE)


@REGISTRY.add("evidence", "detections", reason="wrong-data")
def detections_removed(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """The detections of a batch size are gone from the evidence."""
    folder = _written(bench)
    (folder / "detections" / f"bs{BATCH}.npz").unlink()
    return _judged_again(folder, BUNDLE)


@REGISTRY.add("accuracy_guide_floor", EDITED, batch=BATCH)
def figure_edited_and_sealed_again(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """A measured AP was raised by a point and the bundle sealed again."""

    def edit(document: EvidenceDocument) -> EvidenceDocument:
        clauses = tuple(map(_raised, document.release.clauses))
        return document.model_copy(update={"release": document.release.model_copy(update={"clauses": clauses})})

    return _judged_again(_sealed_again(_written(bench), edit), "accuracy_guide_floor", BATCH)


def _raised(verdict: ClauseVerdict) -> ClauseVerdict:
    if (verdict.clause, verdict.batch) != ("accuracy_guide_floor", BATCH):
        return verdict
    readings = tuple(
        reading.model_copy(update={"value": reading.value + 1, "margin": reading.margin + 1})
        for reading in verdict.readings
    )
    return verdict.model_copy(update={"readings": readings})


@REGISTRY.add("score_agreement", EDITED, batch=BATCH)
def limit_edited_and_sealed_again(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """A limit in the stored spec was loosened and the bundle sealed again."""

    def edit(document: EvidenceDocument) -> EvidenceDocument:
        clause = document.spec.clauses["score_agreement"]
        limits = {**clause.limits, "score_p99": clause.limits["score_p99"].model_copy(update={"value": 0.5})}
        clauses = {**document.spec.clauses, "score_agreement": clause.model_copy(update={"limits": limits})}
        spec = document.spec.model_copy(update={"clauses": clauses})
        return document.model_copy(update={"spec": spec, "spec_digest": spec.digest})

    return _judged_again(_sealed_again(_written(bench), edit), "score_agreement", BATCH)


@REGISTRY.add("score_agreement", EDITED, batch=BATCH)
def detections_of_a_better_run(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """The scores of all detections were raised and the bundle sealed again."""
    bundle = read_bundle(_written(bench))
    better = replace(bundle.passes[BATCH], scores=bundle.passes[BATCH].scores ** 0.9)
    bundle.__dict__["passes"] = {**bundle.passes, BATCH: better}
    return _judged_again(_rewritten(bundle, bundle.document), "score_agreement", BATCH)
