"""How each clause is measured again from a bundle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from support.clauses import CATALOGUE
from support.errors import NoBaselineError
from support.evidence.measured import Measured
from support.measurements import accuracy, agreement
from support.measurements.throughput import SAVED, vs_saved
from support.verdict import ClauseVerdict, Measurement

__all__ = ["measured_again"]


def measured_again(stored: ClauseVerdict, measured: Measured) -> Measurement:
    """
    Measure a clause again from a bundle, or take its numbers where they need models, tensors or a device.

    Parameters
    ----------
    stored : ClauseVerdict
        A clause of the catalogue that has numbers.
    measured : Measured
        What the arrays of the bundle show.

    Raises
    ------
    SuiteError
        If the bundle does not hold what the clause is measured from.
    """
    if stored.clause in _OF_BATCH and stored.batch is not None:
        return _OF_BATCH[stored.clause](measured, stored.batch, stored)
    if stored.clause in _OF_RUN:
        return _OF_RUN[stored.clause](measured, stored)
    return _from_readings(stored)


def _from_readings(stored: ClauseVerdict) -> Measurement:
    # A reading of another variant, or of none, is found by the judge, which knows what the clause has.
    quantities = CATALOGUE[stored.clause].quantities
    variants = {quantities[reading.name].variant for reading in stored.readings if reading.name in quantities} - {""}
    return Measurement(
        {reading.name: reading.value for reading in stored.readings},
        stored.count,
        stored.expected,
        findings=stored.findings,
        suspect=stored.suspect,
        variant=min(variants, default=""),
        origin=stored.origin,
    )


def _slot_error(stored: ClauseVerdict) -> float:
    # The one number of the clause that needs the device: it compares the slots of a batch of equal images.
    found = [reading.value for reading in stored.readings if reading.name.endswith("slot_error")]
    return found[0] if found else math.nan


def _stage_ap(measured: Measured, stored: ClauseVerdict) -> Measurement:
    ladder = measured.document.ladder
    if ladder is None:
        return _from_readings(stored)
    covered, expected = measured.images
    return accuracy.stage_ap(
        ladder.stages,
        ladder.edited,
        pads_kept=ladder.pads_kept,
        compiled=ladder.compiled,
        count=covered,
        expected=expected,
    )


def _regression(measured: Measured, stored: ClauseVerdict, batch: int) -> Measurement:
    # The saved run is not in the bundle; its figure is.
    try:
        figure = float(stored.origin.get(SAVED, ""))
    except ValueError:
        raise NoBaselineError(f"{stored.label} does not tell the figure of the saved run") from None
    return measured.speed.against_saved(
        batch,
        lambda found: vs_saved(
            found, figure, images=measured.images[1], findings=stored.findings[1:], origin=stored.origin
        ),
    )


def _vs(measured: Measured, stored: ClauseVerdict, batch: int, baseline: str) -> Measurement:
    return measured.speed.vs_baseline(stored.clause, batch, measured.spec.baselines[baseline])


def _best_vs(measured: Measured, stored: ClauseVerdict, baseline: str) -> Measurement:
    return measured.speed.best_vs_baseline(stored.clause, measured.spec.baselines[baseline])


#: How clauses of a batch size are measured from a bundle; those that are not here are judged from their numbers.
_OF_BATCH: Mapping[str, Callable[[Measured, int, ClauseVerdict], Measurement]] = {
    "batch_invariance": lambda m, batch, stored: agreement.batch_invariance(
        m.between_batches(batch), _slot_error(stored), m.images[1], precision=m.document.precision
    ),
    "coverage": lambda m, batch, _: m.coverage(batch),
    "score_agreement": lambda m, batch, _: agreement.score_agreement(
        m.with_reference(batch), m.spec.accuracy, m.images[1]
    ),
    "accuracy_guide_floor": lambda m, batch, _: accuracy.guide_floor(m.candidate(batch).figures, *m.images),
    "accuracy_guide_drop": lambda m, batch, _: accuracy.guide_drop(m.candidate(batch).figures, *m.images),
    "accuracy_measured_drop": lambda m, batch, _: accuracy.measured_drop(
        m.candidate(batch).figures, m.reference.figures, m.spec.accuracy, *m.images
    ),
    "suspicious_gain": lambda m, batch, _: accuracy.suspicious_gain(
        m.candidate(batch).figures, m.reference.figures, *m.images
    ),
    "class_size_guard": lambda m, batch, _: accuracy.class_size_guard(
        m.truth, m.reference, m.candidate(batch), m.spec.accuracy, m.images[1]
    ),
    "throughput_fresh_inputs": lambda m, batch, _: m.speed.fresh_inputs(batch),
    "throughput_vs_310": lambda m, batch, stored: _vs(m, stored, batch, m.spec.throughput.baseline_310),
    "throughput_vs_t4": lambda m, batch, stored: _vs(m, stored, batch, m.spec.throughput.baseline_t4),
    "throughput_same_chip": lambda m, batch, stored: _vs(
        m, stored, batch, m.spec.throughput.same_chip[m.document.asked.chip]
    ),
    "throughput_regression": lambda m, batch, stored: _regression(m, stored, batch),
}
#: The same for clauses of a whole run.
_OF_RUN: Mapping[str, Callable[[Measured, ClauseVerdict], Measurement]] = {
    "reference_ap": lambda m, _: accuracy.reference_ap(m.reference.figures, m.spec.accuracy, *m.images),
    "stage_ap": _stage_ap,
    "throughput_best_vs_310": lambda m, stored: _best_vs(m, stored, m.spec.throughput.baseline_310),
    "throughput_best_vs_t4": lambda m, stored: _best_vs(m, stored, m.spec.throughput.baseline_t4),
}
