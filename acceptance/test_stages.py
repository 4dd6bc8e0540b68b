import pytest

from support.measurements import accuracy, graph, om, stages, tensors


@pytest.mark.clause("checkpoint_contract")
def test_the_checkpoint_holds_the_tensors_of_the_architecture(run, spec, clause):
    clause.judge(stages.checkpoint_contract(run.checkpoint, spec.model))


@pytest.mark.clause("graph_contract")
def test_the_graph_is_the_one_of_the_deployment(run, spec, clause, batch):
    clause.judge(graph.graph_contract(run.onnx(batch), spec, batch))


@pytest.mark.clause("weights_account")
def test_every_weight_comes_from_the_checkpoint(run, spec, clause, batch):
    clause.judge(graph.weights_account(run.checkpoint, run.onnx(batch), spec))


@pytest.mark.clause("simplified_equals_raw")
@pytest.mark.needs_coco
def test_simplification_changes_no_number(run, clause, batch):
    clause.judge(
        tensors.simplified_equals_raw(run.stage_heads("raw onnx", batch), run.stage_heads("simplified onnx", batch))
    )


@pytest.mark.clause("modified_edit")
def test_modification_edits_the_pads_and_nothing_else(run, clause, batch):
    clause.judge(stages.modified_edit(run.built.simplified(batch), run.built.modified(batch)))


@pytest.mark.clause("pad_edit")
def test_the_pad_edit_works_on_a_graph_that_keeps_its_pads(run, clause):
    clause.judge(stages.pad_edit(*run.built.pad_example()))


@pytest.mark.clause("om_contract")
@pytest.mark.needs_chip
def test_the_compiled_model_is_the_one_of_its_batch_size_and_chip(run, spec, clause, batch):
    clause.judge(
        om.om_contract(
            run.loaded(batch),
            run.om_facts(batch),
            spec.model,
            batch=batch,
            soc_version=run.devices.ascend.npus[0].soc_version,
            fp32_types=spec.atc.kept_types,
        )
    )


@pytest.mark.clause("stage_tensors")
@pytest.mark.needs_chip
@pytest.mark.needs_coco
def test_raw_heads_agree_with_the_checkpoints(run, results, clause, batch):
    clause.judge(
        tensors.stage_tensors(
            results.golden,
            run.candidate(batch).golden,
            pads_kept=run.pads_kept(batch),
            precision=run.precision,
            suspect=lambda: run.overflow(row=0),
        )
    )


@pytest.mark.clause("stage_ap")
@pytest.mark.needs_chip
@pytest.mark.needs_coco
def test_ap_does_not_change_from_stage_to_stage(run, results, spec, clause):
    kept = run.pads_kept(spec.accuracy.ladder_batch)
    covered, expected = results.images
    clause.judge(
        accuracy.stage_ap(
            results.ladder,
            results.edited_ladder,
            pads_kept=kept,
            compiled=results.compiled_ladder,
            count=covered,
            expected=expected,
        )
    )
