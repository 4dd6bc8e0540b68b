"""The search for the cause of a red accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from support.deadline import deadline
from support.errors import ContractViolationError, SuiteError, SuiteTimeoutError, ToolError
from support.localiser import blocks
from support.localiser.conclusion import suspect_of
from support.localiser.heads import head_errors
from support.localiser.network import Network, observed
from support.localiser.record import BlockSearch, HeadError, Localisation, StageError, SuspectImage
from support.localiser.stages import candidate_limits, stage_errors
from support.measurements.accuracy import class_size_guard
from support.memory import Memory, remembered
from support.report.worst import worst_images
from support.results import Results
from support.run import Run
from support.verdict import ClauseVerdict, Measurement, ReleaseVerdict

__all__ = ["SEARCHED", "localise"]

T = TypeVar("T")
U = TypeVar("U")

#: Clauses whose rejection says that the candidate finds or computes something else than the checkpoint.
SEARCHED = frozenset(
    {
        *("accuracy_guide_drop", "accuracy_guide_floor", "accuracy_measured_drop", "suspicious_gain"),
        *("batch_invariance", "class_size_guard", "score_agreement"),
        *("simplified_equals_raw", "stage_ap", "stage_tensors", "weights_account"),
    }
)
#: Time for everything: fifteen times what the kit takes on an idle host, and little beside the gate that was red.
SECONDS = 120.0
#: Images on which blocks are compared. A wrong block is wrong on every image; the second is there for saturation.
IMAGES = 2
WORST_IMAGES = 5


def localise(run: Run, results: Results, release: ReleaseVerdict, *, seconds: float = SECONDS) -> Localisation | None:
    """
    Find out where a red accuracy comes from.

    Parameters
    ----------
    run, results : Run, Results
        Of the session; what it has measured is not measured again.
    release : ReleaseVerdict
        Its verdict.
    seconds : float
        Time limit. What it cuts short, like whatever else fails, becomes a note.

    Returns
    -------
    localisation : Localisation or None
        None if no clause about accuracy, agreement or tensors is red.
    """
    red = [clause for clause in release.clauses if clause.word == "rejected" and not clause.informative]
    red = [clause for clause in red if clause.clause in SEARCHED]
    return _Search(run, results, red, release, seconds).localisation() if red else None


class _Search:
    """One search, from what is cheap to what is not."""

    def __init__(
        self, run: Run, results: Results, red: Sequence[ClauseVerdict], release: ReleaseVerdict, seconds: float
    ) -> None:
        self.memory: Memory = {}
        self._run, self._results, self._red = run, results, red
        sizes = [clause.batch for clause in red if clause.batch is not None]
        self._batch = min(sizes, default=run.options.batches(run.spec)[0])
        self._knows_ladder = any(clause.clause == "stage_ap" and clause.readings for clause in release.clauses)
        self._start, self._seconds = time.monotonic(), seconds
        self._stages: list[StageError] = []
        self._notes: list[str] = []
        self._departure = ""

    def localisation(self) -> Localisation:
        """Do everything."""
        guard = self._part("classes and sizes", self._guard, None)
        self._images: Sequence[SuspectImage] = self._part("worst images", self._worst_images, ())
        self._part("stages", self._compare_stages, None)
        heads = self._part("heads", self._heads, ())
        in_float, in_half = self._part("blocks", self._blocks, None), None
        if in_float is not None and self._run.precision == "mixed":
            in_half = self._part("blocks in half precision", self._half_blocks, None)
        return Localisation(
            suspect=suspect_of(
                self._stages,
                heads,
                in_float,
                in_half,
                departure=self._departure,
                group=str(guard.suspect) if guard else "",
            ),
            red=tuple(clause.label for clause in self._red),
            batch=self._batch,
            stages=tuple(self._stages),
            heads=tuple(heads),
            blocks=in_float,
            half_blocks=in_half,
            groups=guard.findings if guard else (),
            images=tuple(self._images),
            notes=tuple(self._notes),
            seconds=round(time.monotonic() - self._start, 1),
        )

    def _part(self, what: str, find: Callable[[], T], otherwise: U) -> T | U:
        left = self._start + self._seconds - time.monotonic()
        try:
            if left <= 0:
                raise SuiteTimeoutError(f"the {self._seconds:g} s of the search were over")
            with deadline(left, f"the search for the cause ({what})"):
                return find()
        except SuiteError as error:
            self._notes.append(f"{what}: {error.found}")
        except Exception as error:  # whatever breaks here must not cost the verdict it was to explain
            self._notes.append(f"{what}: {type(error).__name__}: {error}")
        return otherwise

    def _guard(self) -> Measurement:
        results, run = self._results, self._run
        return class_size_guard(
            run.dataset.truth,
            results.reference,
            results.candidate(self._batch),
            run.spec.accuracy,
            results.images.expected,
        )

    def _worst_images(self) -> tuple[SuspectImage, ...]:
        found = worst_images(
            self._run.dataset.truth,
            self._results.reference.detections,
            self._results.candidate(self._batch).detections,
            self._run.spec,
            WORST_IMAGES,
        )
        return tuple(SuspectImage(image_id=it.image_id, difference=it.difference, missed=it.missed) for it in found)

    def _compare_stages(self) -> None:
        # The ladder takes a pass for each stage, so it is only used where its clause has been measured.
        ladder: Mapping[str, float] = self._results.ladder if self._knows_ladder else {}
        # Those before one that cannot be compared count.
        for stage in stage_errors(self._run, self._results, self._batch, ladder):
            self._stages.append(stage)

    def _heads(self) -> tuple[HeadError, ...]:
        candidate = self._run.candidate(self._batch).golden
        limits = candidate_limits(self._run, self._batch)
        return head_errors(self._results.golden, candidate, self._run.spec.model, *limits)

    def _blocks(self) -> BlockSearch:
        if self._run.options.mode not in ("build", "onnx"):
            raise ToolError("no tensor between input and heads can be read from an .om or from result files")
        try:
            return blocks.search(self._run.onnx(self._batch), self._network())
        except ContractViolationError as error:
            self._departure = error.found
            raise

    def _half_blocks(self) -> BlockSearch:
        return blocks.search_in_half_precision(self._run.onnx(self._batch), self._network(), self._run.spec.atc)

    @remembered
    def _network(self) -> Network:
        from support.checkpoint import build_model

        run = self._run
        worst = [run.row_of(image.image_id) for image in self._images][:1]
        rows = list(dict.fromkeys([*worst, *range(len(run.feed))]))[:IMAGES]
        return observed(build_model(run.checkpoint, run.spec.model), run.feed.tensors(rows))
