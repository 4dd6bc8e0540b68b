import pytest

from support.measurements import data

pytestmark = pytest.mark.needs_coco


@pytest.mark.clause("input_contract")
def test_network_inputs_are_bit_equal_to_the_reference_loaders(run, clause):
    run.write_bins()
    if run.options.reference is None:
        clause.judge(data.different_from_effdet(run.whole_dataset, run.feed, run.progress))
    else:
        clause.judge(data.different_from_reference(run.feed, run.reference.facts.input_checksums))
