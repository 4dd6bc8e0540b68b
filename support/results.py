"""What the passes of a run show: figures, comparisons and throughput, each computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from support.agreement import Matches, match
from support.bootstrap import ApInterval, ResampledAp, ap_interval, resampled_ap
from support.candidate import Stage
from support.detections import Detections
from support.errors import NoReferenceError, PartialRunError
from support.heads import Heads
from support.measurements import agreement
from support.measurements.accuracy import ScoredPass
from support.memory import Memory, remembered
from support.run import Images, Run
from support.scoring import ApFigures, score
from support.speed import Speed
from support.timing import PassTiming, ThroughputEstimate
from support.verdict import Measurement, judge

__all__ = ["Results"]


class Results:
    """
    Everything derived from the passes of one run.

    Parameters
    ----------
    run : Run
        Gives data, models and passes.

    Attributes
    ----------
    run : Run
        As given.
    """

    def __init__(self, run: Run) -> None:
        self.memory: Memory = {}
        self.run = run

    @property
    def images(self) -> Images:
        """How many images the passes cover, and how many complete ones would."""
        return self.run.images

    # --- accuracy

    @remembered
    def candidate(self, batch: int) -> ScoredPass:
        """Score the candidate at a batch size."""
        detections = self.run.candidate(batch).detections
        return ScoredPass(detections, self.run.score(detections))

    @property
    @remembered
    def reference(self) -> ScoredPass:
        """The checkpoint itself, scored on the images of this run."""
        bundle = self.run.reference
        detections = bundle.detections.select([image.id for image in self.run.dataset.images])
        return ScoredPass(detections, self.run.score(detections))

    @remembered
    def ap_interval(self, batch: int) -> ApInterval:
        """How far the candidate's AP is from the checkpoint's, and how far it would be on other images."""
        return ap_interval(self._resampled_reference, self._resampled(self.candidate(batch)))

    @property
    @remembered
    def _resampled_reference(self) -> ResampledAp:
        return self._resampled(self.reference)

    def _resampled(self, scored: ScoredPass) -> ResampledAp:
        return resampled_ap(self.run.dataset.truth, scored.detections)

    @property
    @remembered
    def ladder(self) -> Mapping[str, float]:
        """AP in points from the checkpoint to the ONNX that is deployed, stage by stage, at the spec's ladder batch."""
        batch = self.run.spec.accuracy.ladder_batch
        last: dict[str, float] = self.compiled_ladder or {"candidate": self.candidate(batch).figures.ap}
        return {
            "checkpoint": self.reference.figures.ap,
            "raw onnx": self._stage_ap("raw onnx"),
            "simplified onnx": self._stage_ap("simplified onnx"),
            **dict(list(last.items())[:1]),
        }

    @property
    @remembered
    def compiled_ladder(self) -> dict[str, float]:
        """AP in points of the ONNX that is compiled and of what it becomes; empty where the ONNX itself is deployed."""
        if not self.run.options.on_npu:
            return {}
        candidate = self.candidate(self.run.spec.accuracy.ladder_batch).figures.ap
        return {"modified onnx": self._stage_ap("modified onnx"), "candidate": candidate}

    @property
    @remembered
    def edited_ladder(self) -> Mapping[str, float]:
        """AP in points of the graph as exported, which keeps its -inf Pads, before and after their edit."""
        return {stage: self._stage_ap(stage) for stage in ("raw onnx", "raw onnx, Pads edited")}

    @remembered
    def _stage_ap(self, stage: Stage) -> float:
        return self.run.score(self.run.stage_pass(stage).detections).ap

    @property
    @remembered
    def both_scorers(self) -> tuple[ApFigures, ApFigures]:
        """Figures of the candidate at the ladder batch by the compiled scorer, and by pycocotools."""
        detections = self.candidate(self.run.spec.accuracy.ladder_batch).detections
        truth = self.run.dataset.truth
        return score(truth, detections, "hotcoco"), score(truth, detections, "pycocotools")

    # --- agreement

    @remembered
    def with_reference(self, batch: int) -> Matches:
        """Match the candidate with the checkpoint."""
        return self._match(self.reference.detections, self.candidate(batch).detections)

    @remembered
    def between_batches(self, batch: int) -> Matches:
        """Match the candidate with itself at another batch size: the smallest of the run that is not this one."""
        others = [size for size in self.run.options.batches(self.run.spec) if size != batch]
        if not others:
            raise PartialRunError(f"batch {batch} is the only one", remedy="name two batch sizes with --batch-sizes")
        return self._match(self.candidate(others[0]).detections, self.candidate(batch).detections)

    @remembered
    def between_passes(self, batch: int) -> Matches:
        """Match the timed pass with an independent pass over some of the same images."""
        again = self.run.recheck(batch).detections
        return self._match(again, self.run.timed(batch).detections.select(again.images))

    def _match(self, first: Detections, second: Detections) -> Matches:
        return match(first, second, self.run.spec.accuracy, self.run.spec.model.max_detections)

    @property
    @remembered
    def golden(self) -> Heads:
        """Raw heads of the checkpoint on the golden images of this run."""
        bundle = self.run.reference
        ids = self.run.feed.image_ids[: self.run.spec.accuracy.golden_images].tolist()
        if ids != list(bundle.facts.golden_ids[: len(ids)]):
            raise NoReferenceError(f"{bundle.folder}: golden images {bundle.facts.golden_ids}", required=f"{ids} first")
        return bundle.golden.rows(slice(0, len(ids)))

    # --- throughput

    @property
    @remembered
    def speed(self) -> Speed:
        """Throughput compared with what it is judged by."""
        run = self.run
        return Speed(
            run.spec,
            run.options.chip_name,
            self.images.expected,
            run.options.batches(run.spec),
            self._passes,
            self._outputs_agree,
        )

    def _passes(self, batch: int, looks: int) -> PassTiming | None:
        run, first = self.run, self.run.timed(batch).timing
        if run.options.results:  # their device is elsewhere
            return first if looks == 1 else None
        further = tuple(run.look(batch, number) for number in range(2, looks + 1))
        return replace(first, repeats=run.recheck(batch).repeats, further=further)

    def _outputs_agree(self, batch: int) -> bool:
        if self.run.options.results:
            return False
        clause = self.run.spec.clauses["timed_outputs"]
        return judge("timed_outputs", clause, self.timed_outputs(batch), batch=batch).word == "accepted"

    @remembered
    def timed_outputs(self, batch: int) -> Measurement:
        """Compare the outputs of the timed pass with those of an independent pass."""
        rules = self.run.spec.throughput
        return agreement.timed_outputs(
            self.between_passes(batch),
            rules,
            precision=self.run.precision,
            expected=min(rules.comparison_images, self.images.expected),
        )

    @remembered
    def throughput(self, batch: int) -> ThroughputEstimate:
        """Estimate the throughput of the candidate at a batch size, with its interval: the official figure."""
        return self.speed.estimate(batch)
