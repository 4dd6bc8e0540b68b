import pytest

from fixtures.benchmarks import require_enabled, require_serial, saved_runs, this_machine
from support.baselines import best_accepted, throughput_record

pytestmark = [pytest.mark.needs_chip, pytest.mark.needs_coco]


@pytest.fixture
def serial(pytestconfig):
    require_serial(pytestconfig)
    require_enabled(pytestconfig)


@pytest.fixture
def record(serial, run, results, spec, pytestconfig, batch):
    machine = this_machine(pytestconfig, run.devices.chip.serial)
    return throughput_record(results.throughput(batch), spec=spec.name, machine=machine)


@pytest.mark.acceptance
@pytest.mark.perf
def test_throughput_is_recorded(run, record, replay, batch):
    replay(run.timed(batch).timing, record)


@pytest.mark.clause("timed_outputs")
def test_the_timed_pass_computed_what_an_independent_pass_computes(serial, results, measuring, clause, batch):
    clause.judge(measuring.timed_outputs(results, batch))


@pytest.mark.clause("throughput_fresh_inputs")
def test_one_image_repeated_is_no_faster_than_new_ones(serial, results, measuring, clause, batch):
    clause.judge(measuring.throughput_fresh_inputs(results, batch))


@pytest.mark.clause("throughput_vs_310")
def test_throughput_against_the_310(serial, results, measuring, clause, batch):
    clause.judge(measuring.throughput_vs_310(results, batch))


@pytest.mark.clause("throughput_vs_t4")
def test_throughput_against_the_t4(serial, results, measuring, clause, batch):
    clause.judge(measuring.throughput_vs_t4(results, batch))


@pytest.mark.clause("throughput_best_vs_310")
def test_best_throughput_against_the_310(serial, results, measuring, clause):
    clause.judge(measuring.throughput_best_vs_310(results))


@pytest.mark.clause("throughput_best_vs_t4")
def test_best_throughput_against_the_t4(serial, results, measuring, clause):
    clause.judge(measuring.throughput_best_vs_t4(results))


@pytest.mark.clause("throughput_same_chip")
def test_throughput_against_the_same_chip(serial, results, measuring, clause, batch):
    clause.judge(measuring.throughput_same_chip(results, batch))


@pytest.mark.clause("throughput_regression")
def test_throughput_against_the_best_accepted_saved_run(record, results, clause, batch, pytestconfig):
    saved = best_accepted(saved_runs(pytestconfig), record)
    clause.judge(results.speed.regression(batch, saved))
