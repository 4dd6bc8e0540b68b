import pytest


@pytest.mark.clause("checkpoint_contract")
def test_the_checkpoint_holds_the_tensors_of_the_architecture(results, measuring, clause):
    clause.judge(measuring.checkpoint_contract(results))


@pytest.mark.clause("graph_contract")
def test_the_graph_is_the_one_of_the_deployment(results, measuring, clause, batch):
    clause.judge(measuring.graph_contract(results, batch))


@pytest.mark.clause("weights_account")
def test_every_weight_comes_from_the_checkpoint(results, measuring, clause, batch):
    clause.judge(measuring.weights_account(results, batch))


@pytest.mark.clause("simplified_equals_raw")
@pytest.mark.needs_coco
def test_simplification_changes_no_number(results, measuring, clause, batch):
    clause.judge(measuring.simplified_equals_raw(results, batch))


@pytest.mark.clause("modified_edit")
def test_modification_edits_the_pads_and_nothing_else(results, measuring, clause, batch):
    clause.judge(measuring.modified_edit(results, batch))


@pytest.mark.clause("pad_edit")
def test_the_pad_edit_works_on_a_graph_that_keeps_its_pads(results, measuring, clause):
    clause.judge(measuring.pad_edit(results))


@pytest.mark.clause("om_contract")
@pytest.mark.needs_chip
def test_the_compiled_model_is_the_one_of_its_batch_size_and_chip(results, measuring, clause, batch):
    clause.judge(measuring.om_contract(results, batch))


@pytest.mark.clause("stage_tensors")
@pytest.mark.needs_chip
@pytest.mark.needs_coco
def test_raw_heads_agree_with_the_checkpoints(results, measuring, clause, batch):
    clause.judge(measuring.stage_tensors(results, batch))


@pytest.mark.clause("stage_ap")
@pytest.mark.needs_chip
@pytest.mark.needs_coco
def test_ap_does_not_change_from_stage_to_stage(results, measuring, clause):
    clause.judge(measuring.stage_ap(results))
