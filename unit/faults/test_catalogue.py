import pytest

from support.clauses import CATALOGUE as CLAUSES
from support.errors import UsageError
from support.evidence.replay import BUNDLE
from support.faults.catalogue import CATALOGUE, chosen
from support.faults.record import STEPS
from support.faults.sessions import SESSION
from support.spec import load_spec

#: Clauses that no fault turns red yet, with what stands in the way.
WITHOUT_A_FAULT = {
    "accuracy_guide_drop": "any loss of AP turns the floor of the guide red too",
    "throughput_vs_310": "the same measurement as throughput_same_chip, of another table",
    "throughput_vs_t4": "the same measurement as throughput_same_chip, of another table",
    "throughput_best_vs_310": "the same measurement as throughput_same_chip, of another table",
    "throughput_best_vs_t4": "the same measurement as throughput_same_chip, of another table",
    "throughput_regression": "compares with runs that pytest saved",
}


def test_there_are_many_faults_and_some_of_every_step():
    assert len(CATALOGUE) >= 80
    assert {fault.step for fault in CATALOGUE.values()} == set(STEPS)


def test_every_clause_has_a_fault_that_turns_it_red():
    assert CLAUSES.keys() - {fault.clause for fault in CATALOGUE.values()} == WITHOUT_A_FAULT.keys()


@pytest.mark.parametrize("fault", CATALOGUE.values(), ids=CATALOGUE)
def test_a_fault_names_a_clause_and_a_suspect(fault):
    assert fault.corrupts
    assert fault.suspect
    if fault.clause in (BUNDLE, SESSION):
        assert fault.batch is None
    else:
        assert (fault.batch is not None) == CLAUSES[fault.clause].per_batch


def test_suspects_of_the_spec_are_those_of_its_clauses():
    suspects = {clause.suspect for clause in load_spec("shapes_d0").clauses.values()}
    quoted = [fault for fault in CATALOGUE.values() if any(fault.suspect in suspect for suspect in suspects)]
    assert len(quoted) > 20


def test_faults_are_chosen_by_name_in_the_order_given():
    first, second = list(CATALOGUE)[:2]
    assert [fault.name for fault in chosen([second, first])] == [second, first]
    assert len(chosen([])) == len(CATALOGUE)


def test_an_unknown_fault_is_refused_with_all_names():
    with pytest.raises(UsageError, match="--fault=nothing: not known\n  required: one of missing-keys"):
        chosen(["nothing"])
