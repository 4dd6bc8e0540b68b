"""Everything a reader is shown, computed once from a bundle, whatever it is then written as."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from support.dataset import GroundTruth
from support.detections import Detections
from support.errors import NoTimingError, SuiteError
from support.evidence.bundle import Bundle
from support.evidence.join import measured_baselines
from support.evidence.model import EvidenceDocument
from support.localiser.text import lines
from support.report import tables
from support.report.captions import Caption, caption
from support.report.drawings import Drawing, accuracy_drawings, ladder_drawing, throughput_drawing
from support.report.explanations import Explanation, explanations
from support.report.pictures import draw_worst, picture_name
from support.report.scored_run import ScoredRun, score_run
from support.report.tables import MarginGroup, Table
from support.report.worst import worst_images
from support.spec import AcceptanceSpec, Baseline
from support.timing import ThroughputEstimate, estimate
from support.verdict import REASONS, ReleaseVerdict

__all__ = ["Page", "Section", "Worst", "joined_page", "page_of", "worst_pictures"]

#: Images drawn: what a reader looks at, and what a page can carry.
WORST_IMAGES = 6


@dataclass(frozen=True)
class Section:
    """Part of a page: what was measured as drawings and tables, and what there is to say about it."""

    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Worst:
    """One of the worst images in words, and its picture (a JPEG) if the bundle has it."""

    caption: Caption
    picture: bytes | None


@dataclass(frozen=True)
class Page:
    """
    A report.

    Parameters
    ----------
    document : EvidenceDocument
        The evidence.
    reasons : tuple of (reason, advice)
        Why the verdict is undetermined.
    explanations : tuple of Explanation
        What stands behind clauses that are not accepted.
    cause : tuple of str
        What the search for the cause of a red accuracy found, line by line.
    batches : tuple of int
        Batch sizes of the cells of `batch_margins`.
    run_margins, batch_margins : tuple of MarginGroup
        Margins of the clauses about the whole run, and of those about each batch size.
    ladder, accuracy, speed : Section
        Where AP went, accuracy against the reference, throughput against other tables.
    worst : tuple of Worst
        The worst images, at the batch size of lowest AP.
    environments : tuple of Table
        On what, with what and on which data each host measured.
    artifacts : Table or None
        Models with their hashes; None if there are none.
    limits : Table
        Every limit with its source.
    commands : tuple of str
        How to get the same verdict again.
    """

    document: EvidenceDocument
    reasons: tuple[tuple[str, str], ...]
    explanations: tuple[Explanation, ...]
    cause: tuple[str, ...]
    batches: tuple[int, ...]
    run_margins: tuple[MarginGroup, ...]
    batch_margins: tuple[MarginGroup, ...]
    ladder: Section
    accuracy: Section
    speed: Section
    worst: tuple[Worst, ...]
    environments: tuple[Table, ...]
    artifacts: Table | None
    limits: Table
    commands: tuple[str, ...]

    @property
    def tally(self) -> dict[str, int]:
        """Number of clauses by how they ended; those that only inform are findings."""
        counts = dict.fromkeys(("accepted", "rejected", "undetermined", "finding"), 0)
        for clause in self.document.release.clauses:
            counts["finding" if clause.informative else clause.word] += 1
        return counts


def page_of(bundle: Bundle) -> Page:
    """
    Compute the report of a bundle, which may be one that is not sealed yet.

    A part that cannot be computed, because the run ended before it was measured or because it cannot be scored, says
    so; it never keeps the verdict from being reported.
    """
    document, release = bundle.document, bundle.document.release
    batches = tuple(sorted({clause.batch for clause in release.clauses if clause.batch is not None}))
    accuracy, worst = _accuracy(bundle)
    return Page(
        document=document,
        reasons=tuple((reason, REASONS.get(reason, "")) for reason in release.reasons),
        explanations=explanations(release),
        cause=lines(document.localisation) if document.localisation else (),
        batches=batches,
        run_margins=tables.margins(document, [None]),
        batch_margins=tables.margins(document, batches),
        ladder=_ladder(document),
        accuracy=accuracy,
        speed=_speed(document, document.spec.baselines),
        worst=worst,
        environments=(tables.environment(document),),
        artifacts=tables.models(document),
        limits=tables.limits(document.spec),
        commands=_commands(document),
    )


def joined_page(bundles: Sequence[Bundle], verdict: ReleaseVerdict) -> Page:
    """
    Compute the report of a verdict over one or several bundles.

    Drawings and worst images are those of the bundle that was compared with the others: that of a 310P, else the first.
    Its throughput is seen beside what the others measured, as it was judged.
    """
    main = next((bundle for bundle in bundles if bundle.document.asked.chip.startswith("310P")), bundles[0])
    others = [bundle for bundle in bundles if bundle is not main]
    page = page_of(Bundle(main.folder, main.document.model_copy(update={"release": verdict})))
    spec = main.document.spec
    return replace(
        page,
        speed=_speed(main.document, {**spec.baselines, **measured_baselines(spec, others)}),
        environments=(*page.environments, *(tables.environment(bundle.document) for bundle in others)),
        commands=(*page.commands, *(shlex.join(["pytest", *bundle.document.asked.argv]) for bundle in others)),
    )


def worst_pictures(
    truth: GroundTruth,
    detections: Mapping[int, Detections],
    reference: Detections | None,
    spec: AcceptanceSpec,
    paths: Mapping[int, Path],
) -> dict[str, bytes]:
    """
    Draw the images that the report of these passes will show.

    Parameters
    ----------
    truth : GroundTruth
        Objects of the images of the run.
    detections : mapping of int to Detections
        The candidate by batch size.
    reference : Detections or None
        The checkpoint.
    spec : AcceptanceSpec
        How detections are matched.
    paths : mapping of int to Path
        Where the images lie, by id.

    Returns
    -------
    pictures : dict of str to bytes
        JPEG files by name, as `support.evidence.bundle.write_bundle` takes them.

    Raises
    ------
    WrongDataError, ToolError
        If the passes cannot be scored, or an image cannot be read.
    """
    if not detections:
        return {}
    run = score_run(truth, detections, reference)
    found = worst_images(truth, reference, detections[run.worst_batch], spec, WORST_IMAGES)
    return draw_worst(found, paths)


def _accuracy(bundle: Bundle) -> tuple[Section, tuple[Worst, ...]]:
    if bundle.truth is None or not bundle.passes:
        return Section(note="No pass over the images was completed."), ()
    try:
        run = score_run(bundle.truth, bundle.passes, bundle.reference)
        drawings = accuracy_drawings(run, bundle.document.spec)
        return Section(drawings, (tables.ap_figures(run), tables.ap_of_classes(run))), _worst(bundle, run)
    except SuiteError as error:
        return Section(note=f"The passes cannot be scored: {error}"), ()


def _worst(bundle: Bundle, run: ScoredRun) -> tuple[Worst, ...]:
    candidate = run.detections[run.worst_batch]
    found = worst_images(run.truth, run.reference, candidate, bundle.document.spec, WORST_IMAGES)
    pictures = [bundle.folder / "pictures" / picture_name(image.image_id) for image in found]
    return tuple(
        Worst(caption(image, run.category), picture.read_bytes() if picture.is_file() else None)
        for image, picture in zip(found, pictures, strict=True)
    )


def _ladder(document: EvidenceDocument) -> Section:
    errors = tables.tensor_errors(document)
    found = (errors,) if errors else ()
    if document.ladder is None or not document.ladder.stages:
        return Section(tables=found, note="AP was not measured stage by stage.")
    return Section((ladder_drawing(document.ladder),), (tables.ladder(document.ladder), *found))


def _speed(document: EvidenceDocument, baselines: Mapping[str, Baseline]) -> Section:
    estimates = _estimates(document)
    beside = tables.baselines_beside(document.spec.throughput, baselines, document.asked.chip)
    copies = estimates[0].includes_copies if estimates else None
    passports = tables.passports(beside, copies)
    if not estimates:
        return Section(tables=(passports,), note="Nothing was timed.")
    note = f"Timed as: {estimates[0].timer}."
    return Section((throughput_drawing(estimates, beside),), (tables.throughput(estimates, beside), passports), note)


def _estimates(document: EvidenceDocument) -> tuple[ThroughputEstimate, ...]:
    rules, found = document.spec.throughput, []
    for batch in sorted(document.passes):
        timing = document.passes[batch].timing
        if timing is None:
            continue
        try:
            found.append(estimate(timing, rules))
        except NoTimingError:
            continue  # the clause of this batch size tells why
    return tuple(found)


def _commands(document: EvidenceDocument) -> tuple[str, ...]:
    return (f"git checkout {document.code.revision}", shlex.join(["pytest", *document.asked.argv]))
