import re
from dataclasses import replace

import pytest

from support.clauses import CATALOGUE
from support.errors import UsageError, WrongDataError
from support.evidence.bundle import read_bundle
from support.evidence.join import join
from support.evidence.model import CheckpointRecord
from support.waivers import Waiver, waive
from unit.evidence.bundles import STARTED, World, found, the_spec

#: Seconds an image; slow enough that the published tables would say otherwise.
SPEEDS = {"310P3": 0.010, "310": 0.030, "T4": 0.050}


@pytest.fixture(scope="module")
def worlds():
    spec = the_spec(clauses__throughput_same_chip__limits__ratio__value=0.01)
    return {chip: World(chip, spec=spec, seconds=seconds) for chip, seconds in SPEEDS.items()}


@pytest.fixture(scope="module")
def documents(worlds):
    return {chip: world.document for chip, world in worlds.items()}


@pytest.fixture
def bundle(worlds, documents, tmp_path):
    def make(chip, **changes):
        document = documents[chip].model_copy(update=changes)
        return read_bundle(worlds[chip].write(tmp_path / chip, document))

    return make


def clause(verdict, label):
    return next(item for item in verdict.clauses if item.label == label)


def test_three_hosts_give_one_verdict(bundle):
    verdict = join([bundle(chip) for chip in SPEEDS])
    assert verdict.line == "accepted: replay of small_d0 on 310P3 + 310 + T4 (not a release)"


def test_a_measured_table_takes_the_place_of_the_published_one(bundle, documents, worlds):
    alone = clause(documents["310P3"].release, "throughput_vs_310[bs8]")
    joined = clause(join([bundle(chip) for chip in SPEEDS]), "throughput_vs_310[bs8]")
    measured = worlds["310"].speed.estimate(8)
    assert (alone.word, joined.word) == ("accepted", "accepted")
    lower = worlds["310P3"].speed.estimate(8).judged_lower
    assert joined.readings[0].value == pytest.approx(lower / measured.images_per_second)
    (passport,) = [finding for finding in joined.findings if finding.startswith("baseline: ")]
    assert f"baseline: {measured.images_per_second:g} images/s on 310, measured on 310" in passport
    assert "2026-11-24; evidence of the 310 joined here" in passport


def test_a_measured_table_can_turn_the_verdict(bundle, worlds):
    quick = World("310", spec=worlds["310"].spec, seconds=SPEEDS["310P3"])
    other = read_bundle(quick.write(bundle("310P3").folder.parent / "quick"))
    verdict = join([bundle("310P3"), other])
    assert clause(verdict, "throughput_vs_310[bs8]").word == "rejected"
    assert clause(verdict, "throughput_best_vs_310").word == "rejected"


def test_a_table_timed_otherwise_is_shown_and_not_judged(bundle, worlds, documents):
    wall = World("310", spec=worlds["310"].spec, seconds=0.001)
    wall.timings = {
        batch: replace(timing, timer="wall time with copies", includes_copies=True)
        for batch, timing in wall.timings.items()
    }
    other = read_bundle(wall.write(bundle("310P3").folder.parent / "wall"))
    found = clause(join([bundle("310P3"), other]), "throughput_vs_310[bs8]")
    alone = clause(documents["310P3"].release, "throughput_vs_310[bs8]")
    assert found.readings == alone.readings
    assert re.search(
        r"measured on 310 and not judged: batch 1 \d+.\d+, batch 8 .*timed as 'wall time", found.findings[-1]
    )


def test_a_table_with_a_gap_is_shown_and_not_judged(bundle, worlds):
    half = worlds["310"].document
    passes = {1: half.passes[1], 8: half.passes[8].model_copy(update={"timing": None})}
    other = bundle("310", passes=passes)
    found = clause(join([bundle("310P3"), other]), "throughput_vs_310[bs8]")
    assert found.findings[-1].endswith("not measured at batch 8")


def test_a_table_with_too_few_samples_is_shown_and_not_judged(bundle, documents):
    passes = dict(documents["310"].passes)
    short = replace(passes[8].timing, calls=passes[8].timing.calls[:1])
    other = bundle("310", passes={**passes, 8: passes[8].model_copy(update={"timing": short})})
    found = clause(join([bundle("310P3"), other]), "throughput_vs_310[bs8]")
    assert found.findings[-1].endswith("not measured at batch 8")


def test_a_waived_clause_stays_waived_against_a_measured_table(bundle, worlds, tmp_path):
    label = "throughput_vs_310[bs8]"
    slow = World("310P3", spec=worlds["310P3"].spec, seconds=0.5)
    waiver = Waiver(clause="throughput_vs_310", batch=8, reason="known", owner="QA", expires=STARTED.date())
    release = slow.document.release
    clauses = tuple(waive(item, [waiver]) for item in release.clauses)
    stored = slow.document.model_copy(
        update={
            "release": release.model_copy(update={"clauses": clauses, "reasons": ("waived",)}),
            "waivers": (waiver,),
        }
    )
    verdict = join([read_bundle(slow.write(tmp_path / "slow", stored)), bundle("310")])
    assert (clause(verdict, label).word, clause(verdict, label).reason) == ("undetermined", "waived")
    assert clause(verdict, "throughput_vs_310[bs1]").word == "rejected"


def test_every_clause_tells_where_it_was_measured(bundle):
    verdict = join([bundle(chip) for chip in SPEEDS])
    assert clause(verdict, "om_contract[bs8]").origin["measured on"] in ("310", "310P3")
    assert all(item.origin["measured on"] in SPEEDS for item in verdict.clauses if item.readings)


def test_the_worst_of_several_hosts_counts(bundle, worlds):
    spec = worlds["T4"].spec
    bad = World("T4", spec=spec)
    bad.passes[8] = found(bad.truth, seed=1, spread=3.0)
    other = read_bundle(bad.write(bundle("310P3").folder.parent / "bad"))
    verdict = join([bundle("310P3"), other])
    assert verdict.word == "rejected"
    assert clause(verdict, "score_agreement[bs8]").origin["measured on"] == "T4"


def test_a_simulated_host_makes_the_whole_simulated(bundle, worlds):
    simulated = World("310", spec=worlds["310"].spec, seconds=0.03, simulation="CANN 5, simulated")
    other = read_bundle(simulated.write(bundle("310P3").folder.parent / "sim"))
    verdict = join([bundle("310P3"), other, bundle("T4")])
    assert (verdict.word, verdict.reasons) == ("undetermined", ("simulated",))


def test_an_edited_bundle_rejects_the_whole(bundle, documents):
    release = documents["T4"].release
    better = [
        item.model_copy(update={"readings": (item.readings[0].model_copy(update={"value": 99.0}),)})
        if item.label == "accuracy_guide_floor[bs8]"
        else item
        for item in release.clauses
    ]
    edited = bundle("T4", release=release.model_copy(update={"clauses": tuple(better)}))
    verdict = join([bundle("310P3"), edited])
    assert verdict.word == "rejected"
    assert "value of ap 99.0 is stored" in clause(verdict, "accuracy_guide_floor[bs8]").findings[0]


def test_a_host_of_the_cpu_joins_too(bundle, worlds):
    cpu = World("cpu", spec=worlds["310"].spec, mode="build")
    other = read_bundle(cpu.write(bundle("310P3").folder.parent / "cpu"))
    verdict = join([bundle("310P3"), other])
    assert (verdict.word, verdict.is_release) == ("accepted", False)
    assert {item.clause for item in verdict.clauses} >= {"checkpoint_contract", "om_contract"}
    assert {item.clause for item in verdict.clauses} <= CATALOGUE.keys()


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("checkpoint", {"checkpoint": CheckpointRecord(sha256="b" * 64)}),
        ("annotations", {"annotation_digest": "b" * 64}),
        ("image sizes", {"size_digest": "b" * 64}),
    ],
)
def test_another_model_or_data_set_is_refused_with_both_hashes(bundle, documents, what, changes):
    if what != "checkpoint":
        changes = {"dataset": documents["T4"].dataset.model_copy(update=changes)}
    before = {
        "checkpoint": "a" * 64,
        "annotations": documents["T4"].dataset.annotation_digest,
        "image sizes": documents["T4"].dataset.size_digest,
    }[what]
    with pytest.raises(WrongDataError, match=rf"T4 is not of the {what} of .*310P3: b{{64}}\n  required: {before}"):
        join([bundle("310P3"), bundle("T4", **changes)])


def test_another_spec_is_refused(bundle):
    other = World("T4", spec=the_spec(clauses__throughput_same_chip__limits__ratio__value=0.02))
    second = read_bundle(other.write(bundle("310P3").folder.parent / "other"))
    with pytest.raises(WrongDataError, match="is not of the spec of"):
        join([bundle("310P3"), second])


def test_a_bundle_that_does_not_tell_its_checkpoint_is_refused(bundle):
    with pytest.raises(WrongDataError, match=r"is not of the checkpoint of .*: none is told"):
        join([bundle("310P3"), bundle("T4", checkpoint=None)])
    with pytest.raises(WrongDataError, match=r"required: both to tell it"):
        join([bundle("T4", checkpoint=None), bundle("310P3")])


def test_two_bundles_of_one_chip_are_refused(bundle, worlds):
    second = read_bundle(worlds["310P3"].write(bundle("T4").folder.parent / "second"))
    with pytest.raises(UsageError, match=r"several bundles of a 310P3: .*310P3, .*second"):
        join([bundle("310P3"), second])


def test_one_bundle_is_not_joined(bundle):
    with pytest.raises(UsageError, match="1 bundle to join"):
        join([bundle("T4")])
