from pathlib import Path

import numpy as np
import pytest

from support.baselines import SavedThroughput, throughput_record
from support.errors import NoBaselineError, NoTimingError
from support.measurements.throughput import SAVED, best_vs_baseline, regression, vs_baseline
from support.spec import load_spec
from support.timing import CallSample, PassTiming, estimate
from support.verdict import judge

SPEC = load_spec("efficientdet_d0")
T4 = SPEC.baselines["t4-ort"]
IMAGES = 5000


def estimated(rate, *, batch=4, images=IMAGES, spread=0.0, copies=False):
    calls = -(-images // batch)
    noise = np.random.default_rng(0).uniform(-1, 1, calls)
    # Without the mean of this sample, so that the rate is exact.
    seconds = batch / rate * (1 + spread * (noise - noise.mean()))
    counts = [batch] * (calls - 1) + [images - batch * (calls - 1)]
    samples = tuple(CallSample(*pair) for pair in zip(seconds.tolist(), counts, strict=True))
    timing = PassTiming("310P3", batch, samples, (), "device compute only", copies)
    return estimate(timing, SPEC.throughput)


def saved(rate, *, batch=4):
    record = throughput_record(estimated(rate, batch=batch), spec="efficientdet_d0", machine="rack7")
    return SavedThroughput(record, Path(".benchmarks/Linux/0003_run.json"), "2026-11-01T10:00:00", accepted=True)


def test_the_ratio_is_the_lower_bound_over_the_published_figure():
    measured = estimated(25, spread=0.1)
    found = vs_baseline(measured, T4, images=IMAGES)
    assert found.values == {"ratio": measured.judged_lower / 12.284}
    assert found.values["ratio"] < measured.images_per_second / 12.284


@pytest.mark.parametrize(("rate", "word"), [(12.284 * 1.61, "accepted"), (12.284 * 1.59, "rejected")])
def test_the_measurement_fits_its_clause(rate, word):
    measurement = vs_baseline(estimated(rate), T4, images=IMAGES)
    assert judge("throughput_vs_t4", SPEC.clauses["throughput_vs_t4"], measurement, batch=4).word == word


@pytest.mark.parametrize("rate", [12.284 * 1.61, 12.284 * 1.59])
def test_an_interval_that_spans_the_limit_is_inconclusive(rate):
    measurement = vs_baseline(estimated(rate, spread=0.5), T4, images=IMAGES)
    verdict = judge("throughput_vs_t4", SPEC.clauses["throughput_vs_t4"], measurement, batch=4)
    assert (verdict.word, verdict.reason) == ("undetermined", "inconclusive")


def test_a_noisy_pass_whose_whole_interval_is_too_slow_is_rejected():
    measurement = vs_baseline(estimated(12.284 * 1.4, spread=0.5), T4, images=IMAGES)
    assert judge("throughput_vs_t4", SPEC.clauses["throughput_vs_t4"], measurement, batch=4).word == "rejected"


def test_a_pass_over_some_of_the_images_is_partial():
    measurement = vs_baseline(estimated(200, images=64), T4, images=IMAGES)
    verdict = judge("throughput_vs_t4", SPEC.clauses["throughput_vs_t4"], measurement, batch=4)
    assert (verdict.word, verdict.reason, verdict.count) == ("undetermined", "partial", 64)


def test_a_batch_size_without_a_published_figure_has_no_baseline():
    with pytest.raises(NoBaselineError, match=r"no figure for batch 2\n  required: one of \[1, 4, 8, 16, 32, 64\]"):
        vs_baseline(estimated(100, batch=2), T4, images=IMAGES)


def test_the_findings_show_interval_percentiles_and_passport():
    measured, unlike, passport = vs_baseline(estimated(250, copies=False), T4, images=IMAGES).findings
    assert measured == (
        "measured: 250.000 images/s, 95% interval 250.000 to 250.000, judged on 250.000 to 250.000, over 1250 calls of "
        "batch 4 (20 blocks of at least 62 calls, autocorrelation time 1.0 calls); latency of a call p50 16.00, p90 "
        "16.00, p99 16.00 ms; device compute only"
    )
    assert unlike == "not like for like: measured without copies, baseline with copies; baseline on random input"
    assert passport == (
        "baseline: 12.284 images/s on T4, ONNX Runtime GPU; wall time of session.run, copies included; precision fp32; "
        "input random; warm-up none in the printed script; count 200 in the printed script; driver not published; "
        "2022-08-19; guide, section 7.3"
    )


def test_figures_of_one_kind_are_not_called_unlike():
    findings = vs_baseline(estimated(250), SPEC.baselines["310P3-cann6"], images=IMAGES).findings
    assert not any("like for like" in finding for finding in findings)


def test_the_best_batch_is_compared_with_the_best_published_one():
    estimates = [estimated(200, batch=4), estimated(240, batch=16), estimated(150, batch=64)]
    found = best_vs_baseline(estimates, T4, batch_sizes=(4, 16, 64), images=IMAGES)
    assert found.values == {"ratio": pytest.approx(240 / 12.476)}
    assert "calls of batch 16" in found.findings[0]
    assert (found.count, found.expected) == (15000, 15000)


@pytest.mark.parametrize("batches", [(4,), (4, 4), (4, 2)])
def test_the_best_of_fewer_batch_sizes_is_partial(batches):
    estimates = [estimated(200, batch=batch) for batch in batches]
    found = best_vs_baseline(estimates, T4, batch_sizes=(4, 16), images=IMAGES)
    assert (found.count, found.expected) == (5000, 10000)


def test_the_best_may_in_truth_be_another_batch_size():
    sure, unsure = estimated(201, batch=4), estimated(200, batch=16, spread=0.2)
    found = best_vs_baseline([sure, unsure], T4, batch_sizes=(4, 16), images=IMAGES)
    assert found.values["ratio"] == sure.judged_lower / 12.476
    assert found.optimistic["ratio"] == unsure.judged_upper / 12.476


def test_few_calls_are_said_to_be_taken_as_independent():
    found = vs_baseline(estimated(250, images=40), T4, images=IMAGES).findings[0]
    assert "over 10 calls of batch 4 (too few to know their dependence: taken as independent)" in found


def test_the_best_of_nothing_is_no_timing():
    with pytest.raises(NoTimingError, match="no batch size was timed"):
        best_vs_baseline([], T4, batch_sizes=(4, 16), images=IMAGES)


def test_a_regression_is_the_ratio_to_the_saved_run():
    found = regression(estimated(80), saved(100), images=IMAGES)
    assert found.values == {"ratio": pytest.approx(0.8)}
    assert found.origin[SAVED] == "100.0"
    assert found.findings[1] == (
        "saved run: 100.000 images/s over 1250 calls, 2026-11-01T10:00:00, Linux/0003_run.json"
    )


@pytest.mark.parametrize(("rate", "word"), [(91, "accepted"), (89, "rejected")])
def test_a_regression_beyond_the_limit_is_rejected(rate, word):
    clause = SPEC.clauses["throughput_regression"]
    measurement = regression(estimated(rate), saved(100), images=IMAGES)
    assert judge("throughput_regression", clause, measurement, batch=4).word == word
