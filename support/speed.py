"""Judged throughput: from passes that are measured when they are needed, or that a bundle of evidence holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from support.baselines import SavedThroughput
from support.looks import settled
from support.measurements import scrutiny, throughput
from support.spec import AcceptanceSpec, Baseline
from support.timing import PassTiming, ThroughputEstimate, estimate
from support.verdict import Measurement

__all__ = ["Speed"]


@dataclass(frozen=True)
class Speed:
    """
    Everything a throughput clause is measured from.

    Parameters
    ----------
    spec : AcceptanceSpec
        Limits, rules and published tables.
    chip : str
        Chip under test.
    images : int
        Images of the full data set.
    batch_sizes : sequence of int
        Of the run.
    passes : callable
        Takes a batch size and a number of looks, and gives the timing of that many passes; None if there are not as
        many. NoTimingError, or what kept the pass from being measured, is its to raise.
    outputs_agree : callable
        Takes a batch size and tells whether the outputs of the timed pass are those of an independent pass.
    """

    spec: AcceptanceSpec
    chip: str
    images: int
    batch_sizes: Sequence[int]
    passes: Callable[[int, int], PassTiming | None]
    outputs_agree: Callable[[int], bool]

    def vs_baseline(self, clause: str, batch: int, table: Baseline) -> Measurement:
        """Compare a batch size with a table, over as many passes as it takes."""
        return self._settled(clause, batch, lambda found: throughput.vs_baseline(found, table, images=self.images))

    def regression(self, batch: int, saved: SavedThroughput) -> Measurement:
        """Compare a batch size with the best accepted saved run."""
        return self.against_saved(batch, lambda found: throughput.regression(found, saved, images=self.images))

    def against_saved(self, batch: int, compare: Callable[[ThroughputEstimate], Measurement]) -> Measurement:
        """Compare a batch size with a figure that was saved, over as many passes as it takes."""
        return self._settled("throughput_regression", batch, compare)

    def best_vs_baseline(self, clause: str, table: Baseline) -> Measurement:
        """Compare the best batch size with the best of a table; only the best one is looked at again."""
        firsts = [self.estimate(batch) for batch in self.batch_sizes]
        best = max(firsts, key=lambda item: item.images_per_second)
        others = [item for item in firsts if item.batch != best.batch]

        def compare(found: ThroughputEstimate) -> Measurement:
            return throughput.best_vs_baseline(
                [found, *others], table, batch_sizes=self.spec.batch_sizes, images=self.images
            )

        return self._settled(clause, best.batch, compare)

    def fresh_inputs(self, batch: int) -> Measurement:
        """Compare one image repeated with new ones."""
        return scrutiny.fresh_inputs(self._first(batch), self.spec.throughput)

    def estimate(self, batch: int) -> ThroughputEstimate:
        """Estimate the throughput of the pass over the data set."""
        return estimate(self._first(batch), self.spec.throughput)

    def _first(self, batch: int) -> PassTiming:
        found = self.passes(batch, 1)
        assert found is not None, "there is one pass, or an error"
        return found

    def _settled(self, clause: str, batch: int, compare: Callable[[ThroughputEstimate], Measurement]) -> Measurement:
        def look(count: int) -> Measurement | None:
            timing = self.passes(batch, count)
            if timing is None:
                return None
            found = estimate(timing, self.spec.throughput)
            return scrutiny.scrutinised(
                compare(found),
                timing,
                self.spec,
                figure=found.images_per_second,
                chip=self.chip,
                outputs_agree=lambda: self.outputs_agree(batch),
            )

        return settled(clause, self.spec.clauses[clause], look, most=self.spec.throughput.looks)
