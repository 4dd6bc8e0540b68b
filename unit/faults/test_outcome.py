import datetime as dt

from support.faults.fault import Fault
from support.faults.outcome import examined, selftest
from support.faults.record import CleanRun, SelfTest, suite_code
from support.verdict import ClauseVerdict

RED = ClauseVerdict(clause="coverage", word="rejected", suspect="the tail batch", findings=("one", "two", "three", "4"))


def fault(act):
    return Fault("tail-dropped", "batching", "The tail is dropped", "coverage", None, "the tail", "", act)


def test_a_fault_that_shows_as_it_must_is_caught():
    outcome, verdict = examined(fault(lambda *_: RED), None)
    assert verdict is RED
    assert outcome.caught
    assert (outcome.fault, outcome.step, outcome.expected) == ("tail-dropped", "batching", "coverage rejected")
    assert (outcome.word, outcome.found_suspect) == ("rejected", "the tail batch")
    assert outcome.findings == ("one", "two", "three")


def test_a_fault_that_shows_otherwise_is_not():
    outcome, _ = examined(fault(lambda *_: RED.model_copy(update={"suspect": "the weather"})), None)
    assert not outcome.caught


def test_an_error_nobody_foresaw_is_no_catch():
    def broken(bench, stack):
        raise ZeroDivisionError("by zero")

    outcome, verdict = examined(fault(broken), None)
    assert not outcome.caught
    assert (verdict.word, verdict.reason) == ("undetermined", "internal-error")
    assert outcome.findings == ("ZeroDivisionError: by zero",)


def clean(**changes):
    given = {"name": "seed1", "seed": 1, "images": 66, "batch_sizes": (1, 8), "clauses": 30, "red": (), "seconds": 9.0}
    return CleanRun(**{**given, **changes})


def test_a_self_test_is_summed_up_in_one_line():
    caught, _ = examined(fault(lambda *_: RED), None)
    missed = caught.model_copy(update={"caught": False})
    result = selftest([caught, missed], [clean(), clean(red=("coverage[bs8] rejected",))], full=False)
    assert result.line == ("self-test: 1 of 2 faults caught (50.0 %), 1 of 2 clean runs with a false alarm")
    assert result.code == suite_code()
    assert result.ended.tzinfo == dt.timezone.utc
    assert SelfTest.model_validate_json(result.model_dump_json()) == result


def test_single_faults_leave_the_rate_of_clean_runs_open():
    caught, _ = examined(fault(lambda *_: RED), None)
    assert selftest([caught], [], full=False).line == (
        "self-test: 1 of 1 faults caught (100.0 %), 0 of 0 clean runs with a false alarm"
    )
