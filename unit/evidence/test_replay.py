import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from support.evidence.bundle import read_bundle
from support.evidence.model import EvidenceDocument
from support.evidence.replay import replay
from support.measurements import throughput
from support.verdict import ClauseVerdict, failure, judge, release_verdict
from support.waivers import Waiver
from unit.evidence.bundles import IMAGES, STARTED, World, found, the_spec

CHECKOUT = Path(__file__).resolve().parents[2]


def replayed(world, folder, document=None, **given):
    return replay(read_bundle(world.write(folder, document, **given)))


def clause(verdict, label):
    return next(item for item in verdict.clauses if item.label == label)


def only_red(verdict):
    return [item.label for item in verdict.clauses if item.word == "rejected"]


def edited(document, change):
    """Edit evidence as JSON, and read it back as a bundle would."""
    facts = json.loads(document.model_dump_json())
    change(facts)
    return EvidenceDocument.model_validate(facts)


def reading(facts, name, batch, quantity):
    judged = next(item for item in facts["release"]["clauses"] if (item["clause"], item["batch"]) == (name, batch))
    return next(item for item in judged["readings"] if item["name"] == quantity)


def released_anew(facts, clauses):
    """Sum up edited clauses as the suite would have done."""
    document = EvidenceDocument.model_validate(facts)
    scopes, comparing = frozenset({"gate", "throughput"}), document.asked.comparing
    required = document.spec.required(mode="build", chip="cpu", scopes=scopes, comparing=comparing)
    again = release_verdict(
        clauses, required, scope="gate", subject=document.release.subject, session_reasons=document.session_reasons
    )
    facts["release"] = json.loads(again.model_dump_json())


@pytest.fixture(scope="module")
def failing():
    world = World(mode="build", spec=the_spec(clauses__accuracy_measured_drop__limits__ap_ratio__value=0.999))
    world.passes[8] = found(world.truth, seed=1, spread=3.0)
    return world


def test_a_clean_run_is_accepted_again(world, document, tmp_path):
    assert document.release.line == "accepted: small_d0 on cpu (not a release)"
    assert replayed(world, tmp_path / "b").line == "accepted: replay of small_d0 on cpu (not a release)"


def test_every_number_and_every_verdict_is_the_same(world, document, tmp_path):
    again = replayed(world, tmp_path / "b")
    assert [item.model_dump(exclude={"findings"}) for item in again.clauses] == [
        item.model_dump(exclude={"findings"}) for item in document.release.clauses
    ]


def test_a_failing_run_is_rejected_again_with_the_same_numbers(failing, tmp_path):
    document = failing.document
    again = replayed(failing, tmp_path / "b", document)
    assert only_red(again) == only_red(document.release) != []
    assert (
        clause(again, "accuracy_measured_drop[bs8]").readings
        == clause(document.release, "accuracy_measured_drop[bs8]").readings
    )


def test_throughput_is_estimated_again_from_the_samples(tmp_path):
    world = World("310P3", seconds=0.002)
    document = world.document
    again = replayed(world, tmp_path / "b", document)
    assert clause(again, "throughput_vs_t4[bs8]").word == "accepted"
    assert clause(again, "throughput_vs_t4[bs8]").findings == clause(document.release, "throughput_vs_t4[bs8]").findings
    assert again.line == "accepted: replay of small_d0 on 310P3 (not a release)"


def test_one_ap_changed_together_with_its_margin_and_hashes_is_rejected_naming_both_values(world, document, tmp_path):
    def better(facts):
        for key in ("value", "margin"):
            reading(facts, "accuracy_guide_floor", 8, "ap")[key] += 0.25

    again = replayed(world, tmp_path / "b", edited(document, better))
    before = clause(document.release, "accuracy_guide_floor[bs8]").readings[0].value
    (text,) = clause(again, "accuracy_guide_floor[bs8]").findings
    assert f"value of ap {before + 0.25!r} is stored, {before!r} computed again" in text
    assert only_red(again) == ["accuracy_guide_floor[bs8]"]


def test_a_change_below_the_noise_of_another_processor_is_none(world, document, tmp_path):
    def noise(facts):
        reading(facts, "accuracy_guide_floor", 8, "ap")["value"] *= 1 + 1e-13

    assert replayed(world, tmp_path / "b", edited(document, noise)).word == "accepted"


def test_a_number_that_needs_a_device_is_judged_again(world, document, tmp_path):
    def outside_and_called_inside(facts):
        reading(facts, "stage_tensors", 8, "logit_error")["value"] = 0.5

    again = replayed(world, tmp_path / "b", edited(document, outside_and_called_inside))
    assert (
        "margin of logit_error 0.0 is stored, -0.499 computed again" in clause(again, "stage_tensors[bs8]").findings[0]
    )
    assert only_red(again) == ["stage_tensors[bs8]"]


def test_an_edited_limit_shows_in_every_clause_it_judges(world, document, tmp_path):
    lower = the_spec(clauses__accuracy_guide_drop__limits__ap__factor=0.5)
    looser = document.model_copy(update={"spec": lower, "spec_digest": lower.digest})
    again = replayed(world, tmp_path / "b", looser)
    assert only_red(again) == ["accuracy_guide_drop[bs1]", "accuracy_guide_drop[bs8]"]
    assert "limit of ap 40.8" in clause(again, "accuracy_guide_drop[bs8]").findings[0]


def test_detections_that_do_not_reach_the_stored_ap_are_rejected(world, document, tmp_path):
    worse = {**world.passes, 8: found(world.truth, seed=1, spread=3.0)}
    again = replayed(world, tmp_path / "b", document, detections=worse)
    assert {"accuracy_guide_floor[bs8]", "accuracy_guide_drop[bs8]", "suspicious_gain[bs8]"} <= set(only_red(again))
    assert "AP of the candidate in the ladder" in clause(again, "evidence").findings[0]


def test_a_reference_that_does_not_reach_its_stored_ap_is_rejected(world, document, tmp_path):
    def better(facts):
        facts["reference"]["ap"] += 1e-6

    again = replayed(world, tmp_path / "b", edited(document, better))
    assert only_red(again) == ["evidence"]
    assert "AP of the reference" in clause(again, "evidence").findings[0]


def test_another_ground_truth_is_rejected(world, document, tmp_path):
    coco = {**world.truth.coco, "annotations": world.truth.coco["annotations"][:-1]}
    again = replayed(world, tmp_path / "b", document, truth=type(world.truth)(coco, world.truth.category_ids))
    assert clause(again, "evidence").findings[0] == "the ground truth is not the one whose digests are stored"


@pytest.mark.parametrize("limit", [None, 24])
def test_the_number_of_images_must_be_that_of_the_ground_truth(world, document, tmp_path, limit):
    def more(facts):
        facts["dataset"] |= {"images": 25, "whole": 25}
        facts["asked"]["limit"] = limit

    again = replayed(world, tmp_path / "b", edited(document, more))
    assert "25 of 25 images is stored, 24 of" in clause(again, "evidence").findings[0]


def test_a_verdict_that_its_clauses_do_not_add_up_to_is_rejected(failing, tmp_path):
    def accept(facts):
        facts["release"]["word"] = "accepted"

    again = replayed(failing, tmp_path / "b", edited(failing.document, accept))
    assert "the verdict is 'accepted: small_d0 on cpu (not a release)'" in clause(again, "evidence").findings[0]


def test_a_clause_that_was_left_out_is_rejected(world, document, tmp_path):
    def leave_out(facts):
        facts["release"]["clauses"] = [c for c in facts["release"]["clauses"] if c["clause"] != "pad_edit"]

    again = replayed(world, tmp_path / "b", edited(document, leave_out))
    assert "clauses that the spec requires are missing" in clause(again, "evidence").findings
    assert clause(again, "pad_edit").reason == "partial"


def test_a_run_cannot_claim_to_be_a_release(world, document, tmp_path):
    def claim(facts):
        facts["release"]["is_release"] = True
        facts["asked"]["not_release"] = []

    again = replayed(world, tmp_path / "b", edited(document, claim))
    assert (again.is_release, again.word) == (False, "rejected")


def test_a_clause_accepted_without_a_number_is_rejected(world, document, tmp_path):
    def forget(facts):
        facts["release"]["clauses"][3]["readings"] = []

    again = replayed(world, tmp_path / "b", edited(document, forget))
    label = document.release.clauses[3].label
    assert clause(again, label).findings[0].startswith(f"{label} is accepted without a number")


def test_numbers_of_a_clause_the_run_does_not_have_are_rejected(world, document, tmp_path):
    def rename(facts):
        facts["release"]["clauses"][0]["clause"] = "om_contract"

    again = replayed(world, tmp_path / "b", edited(document, rename))
    assert "om_contract is no clause that the spec has for this run" in clause(again, "om_contract").findings[0]


def test_a_rejection_called_informative_is_rejected(failing, tmp_path):
    def hide(facts):
        for item in facts["release"]["clauses"]:
            item["informative"] = item["word"] == "rejected"

    again = replayed(failing, tmp_path / "b", edited(failing.document, hide))
    assert "informative True is stored, none computed again" in clause(again, "score_agreement[bs8]").findings[0]


def test_what_was_not_measured_stays_undetermined(world, document, tmp_path):
    facts = json.loads(document.model_dump_json())
    lost = failure("coverage", KeyboardInterrupt(), batch=8)
    rest = [item for item in document.release.clauses if item.label != "coverage[bs8]"]
    facts["session_reasons"] = ["interrupted"]
    released_anew(facts, [*rest, lost])
    again = replayed(world, tmp_path / "b", EvidenceDocument.model_validate(facts))
    assert (again.word, again.reasons) == ("undetermined", ("interrupted",))
    assert only_red(again) == []


def test_a_test_of_the_gate_that_is_no_clause_stays_what_it_was(world, document, tmp_path):
    facts = json.loads(document.model_dump_json())
    broken = ClauseVerdict(clause="test_throughput_is_recorded", batch=1, word="undetermined", reason="not-serial")
    released_anew(facts, [*document.release.clauses, broken])
    again = replayed(world, tmp_path / "b", EvidenceDocument.model_validate(facts))
    assert (again.word, again.reasons) == ("undetermined", ("not-serial",))


def test_a_simulated_device_is_never_forgotten(document, world, tmp_path):
    def hardware(facts):
        facts["environment"]["simulation"] = "simulated CANN"

    again = replayed(world, tmp_path / "b", edited(document, hardware))
    assert "simulated" in again.reasons
    assert "the reasons are" in clause(again, "evidence").findings[-1]


def waived(world, waivers):
    document = world.document
    facts = json.loads(document.model_dump_json())
    clauses = [
        item.model_copy(update={"word": "undetermined", "reason": "waived"}) if item.word == "rejected" else item
        for item in document.release.clauses
    ]
    facts["waivers"] = [json.loads(waiver.model_dump_json()) for waiver in waivers]
    released_anew(facts, clauses)
    return EvidenceDocument.model_validate(facts)


def test_a_waived_clause_stays_waived(failing, tmp_path):
    names = {item.clause for item in failing.document.release.clauses if item.word == "rejected"}
    waivers = [Waiver(clause=name, reason="known", owner="QA", expires=STARTED.date()) for name in names]
    again = replayed(failing, tmp_path / "b", waived(failing, waivers))
    assert (again.word, again.reasons) == ("undetermined", ("waived",))


def test_a_clause_waived_by_nobody_is_rejected(failing, tmp_path):
    again = replayed(failing, tmp_path / "b", waived(failing, []))
    assert "reason waived is stored, none computed again" in clause(again, "score_agreement[bs8]").findings[0]


def test_a_number_without_the_array_it_comes_from_is_rejected(document, world, tmp_path):
    def drop(facts):
        del facts["passes"]["8"]

    one = edited(document, drop)
    again = replayed(world, tmp_path / "b", one, detections={1: world.passes[1]})
    assert "no-reference computed again" in clause(again, "coverage[bs8]").findings[0]


def test_detections_that_no_detector_may_give_are_rejected(document, world, tmp_path):
    bad = world.passes[8]
    scores = np.where(np.arange(len(bad.scores)) == 0, np.float32(1.5), bad.scores)
    broken = {**world.passes, 8: type(bad)(bad.images, bad.image_ids, bad.boxes, scores, bad.category_ids, bad.anchors)}
    again = replayed(world, tmp_path / "b", document, detections=broken)
    assert clause(again, "accuracy_guide_floor[bs8]").word == "rejected"


def compared(world, document, figure):
    """Return the document as if the run had been compared with a saved one, at every batch size `figure` of its own."""
    name, clauses = "throughput_regression", []
    clause = world.spec.clauses[name]
    for batch in world.spec.batch_sizes:
        saved = figure * world.speed.estimate(batch).images_per_second
        measurement = world.speed.against_saved(
            batch,
            partial(
                throughput.vs_saved, figure=saved, images=IMAGES, findings=(), origin={throughput.SAVED: repr(saved)}
            ),
        )
        clauses.append(judge(name, clause, measurement, batch=batch))
    facts = json.loads(document.model_dump_json())
    facts["asked"]["comparing"] = True
    released_anew(facts, [*document.release.clauses, *clauses])
    return EvidenceDocument.model_validate(facts)


def test_a_regression_is_compared_again_with_the_figure_that_was_saved(world, document, tmp_path):
    again = replayed(world, tmp_path / "b", compared(world, document, 1.0))
    assert (again.word, only_red(again)) == ("accepted", [])


def test_a_regression_within_its_noise_stays_inconclusive(world, document, tmp_path):
    again = replayed(
        world,
        tmp_path / "b",
        compared(world, document, 1 / world.spec.clauses["throughput_regression"].limits["ratio"].number),
    )
    assert (again.word, again.reasons, only_red(again)) == ("undetermined", ("inconclusive",), [])


def test_a_regression_that_hides_the_figure_it_was_compared_with_is_rejected(world, document, tmp_path):
    whole = compared(world, document, 1.0)
    facts = json.loads(whole.model_dump_json())
    for row in facts["release"]["clauses"]:
        row["origin"].pop(throughput.SAVED, None)
    again = replayed(world, tmp_path / "b", EvidenceDocument.model_validate(facts))
    assert only_red(again) == ["throughput_regression[bs1]", "throughput_regression[bs8]"]


def test_replaying_loads_no_model_runtime(world, tmp_path):
    folder = world.write(tmp_path / "b")
    code = (
        "import sys; from pathlib import Path\n"
        "from support.evidence.bundle import read_bundle; from support.evidence.replay import replay\n"
        f"print(replay(read_bundle(Path({str(folder)!r}))).word)\n"
        "print(sorted({'torch', 'onnxruntime', 'effdet', 'onnx', 'onnxsim', 'pytest'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout == "accepted\n[]\n"
