import pytest

from support.faults.fault import Fault, Registry
from support.verdict import ClauseVerdict

REJECTED = Fault("name", "input", "Something is wrong", "coverage", 8, "the tail", "", lambda bench, stack: None)
UNDETERMINED = Fault("name", "device", "A call never ends", "coverage", 8, "took longer", "timeout", lambda *_: None)


def verdict(**changes):
    given = {"clause": "coverage", "batch": 8, "word": "rejected", "suspect": "look at the tail batch"}
    return ClauseVerdict(**{**given, **changes})


def test_a_fault_is_explained_by_its_clause_its_word_and_its_suspect():
    assert REJECTED.explains(verdict())


@pytest.mark.parametrize(
    "changes",
    [
        {"clause": "score_agreement"},
        {"batch": 4},
        {"batch": None},
        {"word": "accepted", "suspect": ""},
        {"word": "undetermined", "reason": "timeout"},
        {"suspect": "something else"},
        {"suspect": ""},
    ],
)
def test_no_other_verdict_explains_a_fault(changes):
    assert not REJECTED.explains(verdict(**changes))


def test_what_cannot_be_measured_is_explained_by_its_reason_and_message():
    told = {"word": "undetermined", "suspect": "", "findings": ("call 3 took longer than 3 s",)}
    assert UNDETERMINED.explains(verdict(reason="timeout", **told))
    assert not UNDETERMINED.explains(verdict(reason="device-lost", **told))
    assert not UNDETERMINED.explains(verdict(reason="timeout", **{**told, "findings": ("the device is gone",)}))
    assert not UNDETERMINED.explains(verdict())


def test_a_verdict_may_be_given_instead_of_a_run():
    given = verdict()
    fault = Fault("name", "evidence", "Edited", "coverage", 8, "the tail", "", lambda bench, stack: given)
    assert fault.shown(None) is given


def test_what_a_fault_puts_in_is_taken_out_again():
    closed = []

    def act(bench, stack):
        stack.callback(closed.append, True)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Fault("name", "input", "Broken", "coverage", 8, "", "", act).shown(None)
    assert closed == [True]


def test_a_registry_takes_names_and_sentences_from_the_functions():
    registry = Registry("input")

    @registry.add("coverage", "the tail", batch=8)
    def tail_dropped(bench, stack):
        """The tail is dropped."""

    @registry.add("coverage", "gone", reason="device-lost", step="device")
    def device_gone(bench, stack):
        """The device is gone."""

    first, second = registry.faults
    assert (first.name, first.step, first.corrupts) == ("tail-dropped", "input", "The tail is dropped")
    assert first.label == "coverage[bs8] rejected"
    assert (second.step, second.label) == ("device", "coverage device-lost")


def test_a_reason_that_no_clause_has_is_refused():
    with pytest.raises(ValueError, match="'broken' is no reason"):
        Registry("input").add("coverage", "", reason="broken")
