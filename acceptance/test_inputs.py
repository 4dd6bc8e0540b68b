import pytest

pytestmark = pytest.mark.needs_coco


@pytest.mark.clause("input_contract")
def test_network_inputs_are_bit_equal_to_the_reference_loaders(run, results, measuring, clause):
    run.write_bins()
    clause.judge(measuring.input_contract(results))
