import pytest

pytestmark = pytest.mark.selftest


def test_a_fault_turns_its_clause_red_and_is_pointed_at(fault, require_caught):
    require_caught(fault)


def test_a_clean_run_is_accepted(clean_plan, require_accepted):
    require_accepted(clean_plan)
