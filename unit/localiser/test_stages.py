from types import SimpleNamespace

import numpy as np
import pytest

from support.errors import ContractViolationError
from support.heads import Heads, head_shapes
from support.localiser.heads import head_errors
from support.localiser.stages import candidate_limits, stage_errors
from support.spec import load_spec

SPEC = load_spec("shapes_d0").model_copy(
    update={"model": load_spec("shapes_d0").model.model_copy(update={"image_size": 128})}
)
LIMITS = {
    prefix: SPEC.clauses["stage_tensors"].limits[f"{prefix}logit_error"].number for prefix in ("", "padded_", "mixed_")
}
OFF = {"raw onnx": 0.0, "simplified onnx": 0.25, "modified onnx": 0.5, "candidate": 1.0}


def heads(shift=0.0):
    arrays = [np.full(shape, shift, np.float32) for shape in head_shapes(SPEC.model, 2)]
    return Heads(tuple(arrays[:5]), tuple(arrays[5:]))


def run(mode="build", chip="cpu", pads_kept=False, precision="full"):
    return SimpleNamespace(
        spec=SPEC,
        options=SimpleNamespace(mode=mode, chip=chip),
        precision=precision,
        pads_kept=lambda batch: pads_kept,
        stage_heads=lambda stage, batch: heads(OFF[stage]),
        candidate=lambda batch: SimpleNamespace(golden=heads(OFF["candidate"])),
    )


def errors(*arguments, **options):
    return list(stage_errors(run(*arguments, **options), SimpleNamespace(golden=heads()), 4, {"candidate": 41.2}))


def test_stages_are_compared_with_the_checkpoint_up_to_the_candidate():
    found = errors()
    assert [(stage.stage, stage.logit_error, stage.is_red) for stage in found] == [
        ("raw onnx", 0, False),
        ("simplified onnx", 0.25, True),
        ("candidate", 1, True),
    ]
    assert [stage.ap for stage in found] == [None, None, 41.2]


def test_what_another_device_runs_is_told_from_the_graph_it_got():
    assert [stage.stage for stage in errors(chip="310P3")] == [*OFF]


@pytest.mark.parametrize("mode", ["onnx", "om", "results"])
def test_a_prebuilt_candidate_has_no_stages_before_it(mode):
    assert [stage.stage for stage in errors(mode=mode)] == ["candidate"]


def test_each_stage_has_the_limits_of_its_kind():
    found = errors(chip="310P3", pads_kept=True, precision="mixed")
    assert [stage.logit_limit for stage in found] == [LIMITS[kind] for kind in ("", "", "padded_", "padded_")]
    assert candidate_limits(run(precision="mixed"), 4)[0] == LIMITS["mixed_"]
    assert candidate_limits(run("results", pads_kept=True, precision="mixed"), 4)[0] == LIMITS["mixed_"]


def test_heads_are_compared_level_by_level():
    candidate = heads()
    candidate.classes[2][1, 0, 0, 0] = 0.5
    candidate.boxes[4][0, 0, 0, 0] = 0.25
    found = head_errors(heads(), candidate, SPEC.model, 0.1, 0.3)
    assert [(head.kind, head.level, head.error) for head in found if head.error] == [
        ("class", 5, 0.5),
        ("box", 7, 0.25),
    ]
    assert [(head.kind, head.level) for head in found if head.is_red] == [("class", 5)]
    assert len(found) == 10


def test_heads_of_other_shapes_are_not_compared():
    short = Heads(heads().classes[1:], heads().boxes[1:])
    with pytest.raises(ContractViolationError):
        head_errors(heads(), short, SPEC.model, 0.1, 0.1)
