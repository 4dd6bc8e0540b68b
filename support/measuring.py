"""
From a run to the measurement of each clause, in one place for every caller.

The acceptance tests judge what these functions give; the self-test of the gate gives them runs with known faults, so
what it shows holds for the very code that judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from support.errors import SuiteError
from support.measurements import accuracy, agreement, data, graph, om, stages, tensors
from support.results import Results
from support.verdict import ClauseVerdict, Measurement, failure, judge

__all__ = ["MEASURED", "verdict_of"]


# --- the checkpoint and what is built from it


def checkpoint_contract(results: Results) -> Measurement:
    """Compare the tensors of the checkpoint with those of the architecture."""
    return stages.checkpoint_contract(results.run.checkpoint, results.run.spec.model)


def graph_contract(results: Results, batch: int) -> Measurement:
    """Compare the deployed graph with its contract."""
    return graph.graph_contract(results.run.onnx(batch), results.run.spec, batch)


def weights_account(results: Results, batch: int) -> Measurement:
    """Trace every weight of the deployed graph to the checkpoint."""
    return graph.weights_account(results.run.checkpoint, results.run.onnx(batch), results.run.spec)


def simplified_equals_raw(results: Results, batch: int) -> Measurement:
    """Compare raw heads of the exported and of the simplified graph."""
    raw, simplified = (results.run.stage_heads(stage, batch) for stage in ("raw onnx", "simplified onnx"))
    return tensors.simplified_equals_raw(raw, simplified)


def modified_edit(results: Results, batch: int) -> Measurement:
    """Look for what the modification edits beside the Pads."""
    return stages.modified_edit(results.run.built.simplified(batch), results.run.built.modified(batch))


def pad_edit(results: Results) -> Measurement:
    """Look at the modification of a graph that keeps its Pads."""
    return stages.pad_edit(*results.run.built.pad_example())


def om_contract(results: Results, batch: int) -> Measurement:
    """Compare the compiled model with its batch size and chip."""
    run = results.run
    return om.om_contract(
        run.loaded(batch),
        run.om_facts(batch),
        run.spec.model,
        batch=batch,
        soc_version=run.devices.ascend.npus[0].soc_version,
        fp32_types=run.spec.atc.kept_types,
    )


def stage_tensors(results: Results, batch: int) -> Measurement:
    """Compare raw heads of the candidate with the checkpoint's."""
    run = results.run
    return tensors.stage_tensors(
        results.golden,
        run.candidate(batch).golden,
        pads_kept=run.pads_kept(batch),
        precision=run.precision,
        suspect=lambda: run.overflow(row=0),
    )


def stage_ap(results: Results) -> Measurement:
    """Compare AP from stage to stage."""
    kept = results.run.pads_kept(results.run.spec.accuracy.ladder_batch)
    covered, expected = results.images
    return accuracy.stage_ap(
        results.ladder,
        results.edited_ladder,
        pads_kept=kept,
        compiled=results.compiled_ladder,
        count=covered,
        expected=expected,
    )


# --- the data


def dataset_pins(results: Results) -> Measurement:
    """Compare the evaluation set with the pins of the spec."""
    return data.dataset_pins(results.run.whole_dataset, results.run.spec.dataset)


def input_contract(results: Results) -> Measurement:
    """Compare network inputs with those of effdet's loader, or those a reference was recorded with."""
    run = results.run
    if run.options.reference is None:
        return data.different_from_effdet(run.whole_dataset, run.feed, run.progress)
    return data.different_from_reference(run.feed, run.reference.facts.input_checksums)


def coverage(results: Results, batch: int) -> Measurement:
    """Account for every image that was scored."""
    run, measured = results.run, results.run.candidate(batch)
    return data.coverage(
        measured.detections.images.tolist(),
        [image.id for image in run.whole_dataset.images],
        padded_scored=measured.padded_scored,
        asked=[image.id for image in run.dataset.images],
    )


# --- agreement and accuracy


def batch_invariance(results: Results, batch: int) -> Measurement:
    """Compare what an image gives in another batch size and slot."""
    run = results.run
    matches, slot_error = results.between_batches(batch), run.recheck(batch).slot_error
    return agreement.batch_invariance(matches, slot_error, results.images.expected, precision=run.precision)


def score_agreement(results: Results, batch: int) -> Measurement:
    """Compare detections with the checkpoint's."""
    run = results.run
    return agreement.score_agreement(
        results.with_reference(batch),
        run.spec.accuracy,
        results.images.expected,
        overflow=lambda image_id: run.overflow(run.row_of(image_id)),
    )


def reference_ap(results: Results) -> Measurement:
    """Compare the checkpoint's AP with the quoted one."""
    return accuracy.reference_ap(results.reference.figures, results.run.spec.accuracy, *results.images)


def accuracy_guide_floor(results: Results, batch: int) -> Measurement:
    """Measure AP for the floor of the guide."""
    return accuracy.guide_floor(results.candidate(batch).figures, *results.images)


def accuracy_guide_drop(results: Results, batch: int) -> Measurement:
    """Measure AP for the loss that the guide allows."""
    return accuracy.guide_drop(results.candidate(batch).figures, *results.images)


def accuracy_measured_drop(results: Results, batch: int) -> Measurement:
    """Compare AP with the checkpoint's own."""
    return accuracy.measured_drop(
        results.candidate(batch).figures,
        results.reference.figures,
        results.run.spec.accuracy,
        *results.images,
        interval=results.ap_interval(batch),
    )


def suspicious_gain(results: Results, batch: int) -> Measurement:
    """Measure how far AP is above the checkpoint's own."""
    return accuracy.suspicious_gain(results.candidate(batch).figures, results.reference.figures, *results.images)


def class_size_guard(results: Results, batch: int) -> Measurement:
    """Measure what classes, sizes and orientations lose."""
    run = results.run
    return accuracy.class_size_guard(
        run.dataset.truth, results.reference, results.candidate(batch), run.spec.accuracy, results.images.expected
    )


def scorer_agreement(results: Results) -> Measurement:
    """Compare the compiled scorer with pycocotools."""
    return accuracy.scorer_agreement(*results.both_scorers, *results.images)


# --- throughput


def timed_outputs(results: Results, batch: int) -> Measurement:
    """Compare the timed pass with an independent one."""
    return results.timed_outputs(batch)


def throughput_fresh_inputs(results: Results, batch: int) -> Measurement:
    """Compare one image repeated with new ones."""
    return results.speed.fresh_inputs(batch)


def throughput_vs_310(results: Results, batch: int) -> Measurement:
    """Compare throughput with the 310."""
    spec = results.run.spec
    return results.speed.vs_baseline("throughput_vs_310", batch, spec.baselines[spec.throughput.baseline_310])


def throughput_vs_t4(results: Results, batch: int) -> Measurement:
    """Compare throughput with the T4."""
    spec = results.run.spec
    return results.speed.vs_baseline("throughput_vs_t4", batch, spec.baselines[spec.throughput.baseline_t4])


def throughput_best_vs_310(results: Results) -> Measurement:
    """Compare the best throughput with the best of the 310."""
    spec = results.run.spec
    return results.speed.best_vs_baseline("throughput_best_vs_310", spec.baselines[spec.throughput.baseline_310])


def throughput_best_vs_t4(results: Results) -> Measurement:
    """Compare the best throughput with the best of the T4."""
    spec = results.run.spec
    return results.speed.best_vs_baseline("throughput_best_vs_t4", spec.baselines[spec.throughput.baseline_t4])


def throughput_same_chip(results: Results, batch: int) -> Measurement:
    """Compare throughput with the published figure of the same chip."""
    spec = results.run.spec
    table = spec.baselines[spec.throughput.same_chip[results.run.devices.chip.name]]
    return results.speed.vs_baseline("throughput_same_chip", batch, table)


#: What measures each clause, by its name. A regression is not among them: it compares with runs that pytest saved.
MEASURED: Mapping[str, Callable[..., Measurement]] = MappingProxyType(
    {
        measure.__name__: measure
        for measure in (
            checkpoint_contract,
            dataset_pins,
            input_contract,
            graph_contract,
            weights_account,
            simplified_equals_raw,
            modified_edit,
            pad_edit,
            om_contract,
            stage_tensors,
            stage_ap,
            reference_ap,
            batch_invariance,
            coverage,
            score_agreement,
            accuracy_guide_floor,
            accuracy_guide_drop,
            accuracy_measured_drop,
            suspicious_gain,
            class_size_guard,
            scorer_agreement,
            timed_outputs,
            throughput_fresh_inputs,
            throughput_vs_310,
            throughput_vs_t4,
            throughput_best_vs_310,
            throughput_best_vs_t4,
            throughput_same_chip,
        )
    }
)


def verdict_of(name: str, results: Results, batch: int | None = None) -> ClauseVerdict:
    """
    Measure and judge one clause of a run, whatever keeps it from being measured.

    Parameters
    ----------
    name : str
        A clause of `MEASURED`.
    results : Results
        Of the run.
    batch : int, optional
        Batch size, for a clause that is judged at each.
    """
    try:
        measurement = MEASURED[name](results) if batch is None else MEASURED[name](results, batch)
        return judge(name, results.run.spec.clauses[name], measurement, batch=batch)
    except SuiteError as error:
        return failure(name, error, batch=batch)
