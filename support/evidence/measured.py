"""What the passes of a bundle show: figures, matches and throughput, each computed once and from the arrays alone."""

from __future__ import annotations

import dataclasses

from support.agreement import Matches, match
from support.dataset import GroundTruth
from support.detections import Detections
from support.errors import NoReferenceError, NoTimingError, PartialRunError
from support.evidence.bundle import Bundle
from support.measurements.accuracy import ScoredPass
from support.measurements.data import coverage
from support.memory import Memory, remembered
from support.scoring import check_scorable, score
from support.speed import Speed
from support.timing import PassTiming, ThroughputEstimate
from support.verdict import Measurement

__all__ = ["Measured"]


class Measured:
    """
    Everything that can be measured again from a bundle, without images, weights or device.

    Parameters
    ----------
    bundle : Bundle
        Gives detections, ground truth and timing samples.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.memory: Memory = {}
        self.bundle, self.document, self.spec = bundle, bundle.document, bundle.document.spec

    @property
    def truth(self) -> GroundTruth:
        """The objects of the images of the run."""
        if self.bundle.truth is None:
            raise NoReferenceError(f"{self.bundle.folder} holds no ground truth")
        return self.bundle.truth

    @property
    @remembered
    def image_ids(self) -> list[int]:
        """Ids of the images of the run."""
        return [image["id"] for image in self.truth.coco["images"]]

    @property
    def images(self) -> tuple[int, int]:
        """How many images the run covered, and how many a complete one does."""
        return len(self.image_ids), self.spec.dataset.image_count

    def detections(self, batch: int) -> Detections:
        """Return what the candidate detected at a batch size."""
        if batch not in self.bundle.passes:
            raise NoReferenceError(f"{self.bundle.folder} holds no detections of batch {batch}")
        return self.bundle.passes[batch]

    @remembered
    def candidate(self, batch: int) -> ScoredPass:
        """Score the candidate at a batch size."""
        return self._scored(self.detections(batch))

    @property
    @remembered
    def reference(self) -> ScoredPass:
        """Score the checkpoint itself."""
        if self.bundle.reference is None:
            raise NoReferenceError(f"{self.bundle.folder} holds no detections of the checkpoint")
        return self._scored(self.bundle.reference)

    def _scored(self, detections: Detections) -> ScoredPass:
        check_scorable(detections, self.image_ids, self.spec.model)
        return ScoredPass(detections, score(self.truth, detections, "hotcoco"))

    def coverage(self, batch: int) -> Measurement:
        """Account for every image of the run; of those beyond ``--limit`` a bundle knows only how many there are."""
        scored, dataset = self.detections(batch).images.tolist(), self.document.dataset
        measured = coverage(scored, self.image_ids, padded_scored=self.document.passes[batch].padded_scored)
        return dataclasses.replace(measured, expected=dataset.whole if dataset else len(self.image_ids))

    def with_reference(self, batch: int) -> Matches:
        """Match the candidate with the checkpoint."""
        return self._match(self.reference.detections, self.detections(batch))

    def between_batches(self, batch: int) -> Matches:
        """Match the candidate with itself at another batch size: the smallest of the run that is not this one."""
        others = [size for size in self.document.asked.batch_sizes if size != batch]
        if not others:
            raise PartialRunError(f"batch {batch} is the only one")
        return self._match(self.detections(others[0]), self.detections(batch))

    def _match(self, first: Detections, second: Detections) -> Matches:
        return match(first, second, self.spec.accuracy, self.spec.model.max_detections)

    @property
    @remembered
    def speed(self) -> Speed:
        """Throughput compared with what it is judged by."""
        asked = self.document.asked
        return Speed(self.spec, asked.chip, self.images[1], asked.batch_sizes, self._passes, self._outputs_agree)

    def _passes(self, batch: int, looks: int) -> PassTiming | None:
        record = self.document.passes.get(batch)
        if record is None or record.timing is None:
            raise NoTimingError(f"{self.bundle.folder} holds no timing samples of batch {batch}")
        return record.timing.looks(looks) if looks <= len(record.timing.passes) else None

    def _outputs_agree(self, batch: int) -> bool:
        # Whether its own numbers bear the word out is for the replay of that clause to find.
        clauses = self.document.release.clauses
        return any((c.clause, c.batch, c.word) == ("timed_outputs", batch, "accepted") for c in clauses)

    def throughput(self, batch: int) -> ThroughputEstimate:
        """Estimate the throughput of the pass over the data set at a batch size from its samples."""
        return self.speed.estimate(batch)
