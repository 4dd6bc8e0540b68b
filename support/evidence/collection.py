"""The evidence of a run: whatever it has built and measured when it ends, and nothing beyond."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from support.artifacts import Artifact
from support.capabilities import Capabilities, Chip
from support.dataset import CocoDataset
from support.detections import Detections
from support.engine import Pass
from support.errors import SuiteError
from support.evidence import records
from support.evidence.bundle import write_bundle
from support.evidence.model import (
    REFERENCE,
    TRUTH,
    CheckpointRecord,
    EvidenceDocument,
    LadderRecord,
    ModelRecord,
    PassRecord,
    ReferenceRecord,
)
from support.evidence.roots import Roots, roots_of_this_host
from support.localiser.record import Localisation
from support.memory import recalled
from support.options import RunOptions
from support.report.files import write_pages
from support.report.page import worst_pictures
from support.results import Results
from support.run import Run
from support.spec import AcceptanceSpec
from support.timing import PassTiming
from support.verdict import ReleaseVerdict
from support.waivers import Waiver

__all__ = ["Session", "write_evidence"]

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Session:
    """
    A session that is about to end.

    Parameters
    ----------
    options, spec, capabilities :
        What was asked for, what is required, and what the machine can do.
    argv : sequence of str
        Arguments of the command line.
    started : datetime
        When it began; aware of its time zone.
    run, results : optional
        What was built and measured; None if nothing ever asked for them.
    release : ReleaseVerdict
        How it ends.
    session_reasons : tuple of str
        Reasons of the session as a whole.
    waivers : tuple of Waiver
        What somebody answers for.
    localisation : Localisation or None
        Where a red accuracy comes from.
    """

    options: RunOptions
    spec: AcceptanceSpec
    capabilities: Capabilities
    argv: Sequence[str]
    started: dt.datetime
    run: Run | None
    results: Results | None
    release: ReleaseVerdict
    session_reasons: tuple[str, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    localisation: Localisation | None = None

    @property
    def chip(self) -> Chip | None:
        """The device under test, if it was found."""
        with suppress(SuiteError):
            return self.capabilities.chip(self.options.chip_name, self.options.device_ids)
        return None


def write_evidence(folder: Path, session: Session, *, images: bool) -> Path:
    """
    Write the bundle of a session, with its pages.

    Parameters
    ----------
    folder : Path
        New folder, or that of an earlier bundle.
    session : Session
        What there is to tell.
    images : bool
        Whether the worst images are drawn.

    Returns
    -------
    folder : Path
        The bundle.

    Raises
    ------
    UsageError, NoSpaceError, BuildFailedError
        As `support.evidence.bundle.write_bundle`.
    """
    measured = _Measured(session.run, session.results)
    return write_bundle(
        folder,
        _document(session, measured),
        detections=measured.detections,
        reference=measured.reference.detections if measured.reference else None,
        truth=measured.dataset.truth if measured.dataset else None,
        pictures=_pictures(session.spec, measured) if images else {},
        write_pages=write_pages,
    )


class _Measured:
    """What a run has measured so far."""

    def __init__(self, run: Run | None, results: Results | None) -> None:
        self.run = run
        self.dataset: CocoDataset | None = recalled(run, "dataset")
        self.reference = recalled(results, "reference")
        # All of the spec: the ladder's batch size is measured even if it was not asked for.
        self.batches = run.spec.batch_sizes if run else ()
        self.looks = run.spec.throughput.looks if run else 0
        found = {batch: recalled(run, "candidate", batch) for batch in self.batches}
        self.passes = {batch: measured for batch, measured in found.items() if measured is not None}
        self.ladders = tuple(recalled(results, name) for name in ("ladder", "edited_ladder", "compiled_ladder"))

    @property
    def detections(self) -> dict[int, Detections]:
        return {batch: measured.detections for batch, measured in self.passes.items()}

    def records(self) -> Iterator[tuple[int, PassRecord]]:
        for batch, measured in self.passes.items():
            model, timing = recalled(self.run, "model", batch), self._timing(batch, measured)
            yield batch, records.pass_record(batch, measured, timing, model.sha256 if model else None)

    def _timing(self, batch: int, measured: Pass) -> PassTiming:
        """Return every timing sample of a batch size: of the timed pass, of one image repeated, of further looks."""
        timed, recheck = recalled(self.run, "timed", batch), recalled(self.run, "recheck", batch)
        looks = [recalled(self.run, "look", batch, number) for number in range(2, self.looks + 1)]
        return dataclasses.replace(
            (timed or measured).timing,
            repeats=recheck.repeats if recheck else None,
            further=tuple(look for look in looks if look is not None),
        )

    def artifacts(self) -> Iterator[tuple[int, Artifact]]:
        if self.run is None:
            return
        for batch in self.batches:
            stages = [recalled(self.run.built, stage, batch) for stage in ("raw", "simplified", "modified")]
            deployed = [recalled(self.run, name, batch) for name in ("deployed_onnx", "model")]
            # A stage that changes nothing gives the same bytes, and is a step of its own all the same.
            found = {(each.kind, each.sha256): each for each in (*stages, *deployed) if each is not None}
            yield from ((batch, artifact) for artifact in found.values())

    @property
    def checkpoint(self) -> CheckpointRecord | None:
        loaded, reference = recalled(self.run, "checkpoint"), recalled(self.run, "reference")
        if loaded is not None:
            return CheckpointRecord(sha256=loaded.sha256, known_as=loaded.known_as)
        if reference is None:
            return None
        return CheckpointRecord(sha256=reference.facts.checkpoint_sha256, known_as=reference.facts.checkpoint_known_as)

    def ladder(self, batch: int) -> LadderRecord | None:
        stages, edited, compiled = self.ladders
        kept = recalled(self.run, "pads_kept", batch)
        if stages is None or edited is None or kept is None:
            return None
        return LadderRecord(stages=stages, edited=edited, compiled=compiled or {}, pads_kept=kept)


def _document(session: Session, measured: _Measured) -> EvidenceDocument:
    roots = _roots(session, measured)
    spec = records.hidden_spec(session.spec, roots)
    dataset, whole = measured.dataset, recalled(session.run, "whole_dataset")
    return EvidenceDocument(
        release=records.hidden_verdict(session.release, roots),
        session_reasons=session.session_reasons,
        asked=records.asked_for(session.options, session.spec, session.argv, roots),
        spec=spec,
        spec_digest=spec.digest,
        precision=session.run.precision if session.run else "full",
        environment=records.environment(session.capabilities, session.options.chip_name, session.chip),
        code=records.code_record(CHECKOUT),
        started=session.started,
        ended=dt.datetime.now(dt.timezone.utc),
        checkpoint=measured.checkpoint,
        dataset=records.dataset_record(dataset, len(whole.images)) if dataset and whole else None,
        truth=TRUTH if dataset else None,
        models=_models(measured, roots),
        passes=dict(measured.records()),
        reference=ReferenceRecord(ap=measured.reference.figures.ap, detections=REFERENCE)
        if measured.reference
        else None,
        ladder=measured.ladder(session.spec.accuracy.ladder_batch),
        selftest=records.selftest_record(session.options.artifacts),
        # Who answers for it is told; where anything lies is not.
        localisation=records.hidden_localisation(session.localisation, roots) if session.localisation else None,
        waivers=tuple(waiver.model_copy(update={"reason": roots.hide(waiver.reason)}) for waiver in session.waivers),
    )


def _roots(session: Session, measured: _Measured) -> Roots:
    options = session.options
    return roots_of_this_host(
        checkout=CHECKOUT,
        artifacts=options.artifacts,
        coco=measured.dataset.root if measured.dataset else options.coco_root,
        reference=options.reference,
        scratch=options.scratch,
    )


def _models(measured: _Measured, roots: Roots) -> tuple[ModelRecord, ...]:
    return tuple(records.model_record(artifact, batch, roots) for batch, artifact in measured.artifacts())


def _pictures(spec: AcceptanceSpec, measured: _Measured) -> dict[str, bytes]:
    if measured.dataset is None:
        return {}
    paths = {image.id: image.path for image in measured.dataset.images}
    reference = measured.reference.detections if measured.reference else None
    try:
        return worst_pictures(measured.dataset.truth, measured.detections, reference, spec, paths)
    except SuiteError:
        return {}  # what cannot be scored is told by its clause and by the page
