import subprocess
from pathlib import Path

import pytest

from support.artifacts import Artifact
from support.capabilities import Capabilities, Chip
from support.code import measuring_code
from support.evidence.records import (
    asked_for,
    code_record,
    dataset_record,
    environment,
    hidden_localisation,
    hidden_spec,
    hidden_verdict,
    model_record,
    selftest_record,
)
from support.evidence.roots import Roots
from support.faults.outcome import selftest
from support.faults.record import RECORD, CleanRun, Outcome
from support.localiser.record import Localisation
from support.options import RunOptions
from support.spec import load_spec
from support.verdict import ClauseVerdict, ReleaseVerdict

ROOTS = Roots({"checkout": Path.cwd(), "coco": Path("/data/coco")}, home=Path("/home/alice"), words={"alice": "{user}"})
MACHINE = Capabilities(
    host="rack7", cpu="Kunpeng 920", cores=4, memory_gib=8.0, system="Linux", python="3.11", packages={"numpy": "2"}
)


def test_what_was_asked_for_is_told_with_named_roots():
    options = RunOptions(
        spec="shapes_d0",
        chip="sim:310P3",
        coco_root=Path("/data/coco"),
        reference=Path("ref"),
        om="/home/alice/d0_bs{batch}.om",
        device_ids=(0, 1),
        limit=8,
        allow_busy=True,
    )
    asked = asked_for(options, load_spec("shapes_d0"), ["--coco-root=/data/coco", "--reference=ref"], ROOTS)
    assert (asked.chip, asked.device, asked.mode, asked.limit) == ("310P3", options.device, "om", 8)
    assert asked.options == {
        "coco_root": "{coco}",
        "reference": "{checkout}/ref",
        "om": "{elsewhere}/d0_bs{batch}.om",
        "device_ids": [0, 1],
        "allow_busy": True,
    }
    assert asked.argv == ("--coco-root={coco}", "--reference=ref")
    assert "--limit" in asked.not_release


def test_a_cpu_has_no_serial_number_and_its_host_no_name():
    record = environment(MACHINE, "cpu", MACHINE.chip("cpu"))
    assert record.serial == ""
    assert "rack7" not in record.model_dump_json()


def test_a_device_is_told_with_driver_and_serial_number():
    chip = Chip(name="310P3", device_id=0, model="Ascend 310P3", serial="0x4c", driver="24.1", firmware="7.5")
    record = environment(MACHINE, "310P3", chip)
    assert (record.chip_model, record.serial, record.driver, record.firmware) == (
        "Ascend 310P3",
        "0x4c",
        "24.1",
        "7.5",
    )


def test_a_device_that_was_not_found_is_told_by_its_name_alone():
    record = environment(MACHINE, "T4", None)
    assert (record.chip, record.serial, record.driver) == ("T4", "", "")


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "file").write_text("one")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    return tmp_path


def test_a_clean_checkout_is_told_by_its_revision(checkout):
    record = code_record(checkout)
    assert (len(record.revision), record.dirty, record.measuring) == (40, False, measuring_code())


def test_a_changed_checkout_is_dirty(checkout):
    (checkout / "file").write_text("two")
    assert code_record(checkout).dirty is True


def test_a_copy_inside_another_project_is_none_of_its_revisions(checkout):
    (checkout / "copy").mkdir()
    record = code_record(checkout / "copy")
    assert (record.revision, record.dirty) == ("unknown", None)


def test_a_damaged_checkout_has_no_revision(tmp_path):
    (tmp_path / ".git").mkdir()
    assert code_record(tmp_path).revision == "unknown"


def test_a_data_set_is_told_by_its_digests(world):
    class Opened:
        annotation_digest, size_digest, images = "a" * 64, "b" * 64, (1, 2)

    record = dataset_record(Opened, whole=5)
    assert (record.images, record.whole, record.size_digest) == (2, 5, "b" * 64)


def test_an_artifact_is_told_with_its_command():
    made_by = {"facts": {"command": ["atc", f"--model={Path.cwd()}/m.onnx"]}, "seconds": 1.5}
    record = model_record(Artifact("om", Path("/home/alice/m.om"), "c" * 64, made_by, ()), 8, ROOTS)
    assert record.made_by == {"facts": {"command": ["atc", "--model={checkout}/m.onnx"]}, "seconds": 1.5}
    assert "alice" not in record.model_dump_json()


def test_texts_of_a_verdict_are_told_with_named_roots():
    clause = ClauseVerdict(
        clause="coverage",
        word="undetermined",
        reason="no-data",
        findings=("/data/coco/val2017 is not a folder",),
        suspect="alice",
        origin={"model": "/home/alice/m.om"},
    )
    release = ReleaseVerdict(
        word="undetermined", scope="gate", subject="x on cpu", is_release=False, reasons=("no-data",), clauses=(clause,)
    )
    (hidden,) = hidden_verdict(release, ROOTS).clauses
    assert hidden.findings == ("{coco}/val2017 is not a folder",)
    assert (hidden.suspect, hidden.origin) == ("{user}", {"model": "{elsewhere}/m.om"})


def test_texts_of_a_search_are_told_with_named_roots():
    found = Localisation(
        suspect="the compilation of /home/alice/m.om",
        red=("coverage",),
        batch=1,
        groups=("class 'alice'",),
        notes=("stages: /data/coco/val2017 is not a folder",),
    )
    hidden = hidden_localisation(found, ROOTS)
    assert hidden.suspect == "the compilation of {elsewhere}/m.om"
    assert (hidden.groups, hidden.notes) == (("class '{user}'",), ("stages: {coco}/val2017 is not a folder",))
    assert (hidden.red, hidden.batch) == (found.red, 1)


CAUGHT = Outcome(
    fault="tail-dropped",
    step="batching",
    corrupts="The tail is dropped",
    expected="coverage rejected",
    suspect="the tail",
    word="rejected",
    reason="",
    found_suspect="the tail batch",
    findings=(),
    caught=True,
    seconds=1.0,
)
CLEAN = CleanRun(name="seed1", seed=1, images=66, batch_sizes=(4, 8), clauses=30, red=(), seconds=9.0)


def test_a_self_test_is_told_by_what_it_missed(tmp_path):
    missed, alarm = CAUGHT.model_copy(update={"fault": "one-missed", "caught": False}), ("coverage rejected",)
    red = CLEAN.model_copy(update={"name": "seed2", "red": alarm})
    (tmp_path / RECORD).write_text(selftest([CAUGHT, missed], [CLEAN, red], full=False).model_dump_json())
    record = selftest_record(tmp_path)
    assert (record.faults, record.missed, record.clean_runs, record.false_alarms) == (2, ("one-missed",), 2, ("seed2",))
    assert (record.same_code, record.full) == (True, False)


def test_a_self_test_of_other_code_is_told_as_such(tmp_path):
    other = selftest([CAUGHT], [CLEAN], full=True).model_copy(update={"code": "5a" * 32})
    (tmp_path / RECORD).write_text(other.model_dump_json())
    assert not selftest_record(tmp_path).same_code


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 2}', "[" * 100_000, "x" * 2**21])
def test_a_record_of_a_self_test_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    assert selftest_record(tmp_path) is None


def test_without_a_self_test_nothing_is_told(tmp_path):
    assert selftest_record(tmp_path) is None


def test_places_in_a_spec_are_told_from_roots_and_its_own_keep_their_digest():
    spec = load_spec("shapes_d0")
    assert hidden_spec(spec, ROOTS) == spec
    moved = spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"path": "/home/alice/d0.pth"})})
    assert hidden_spec(moved, ROOTS).checkpoint.path == "{elsewhere}/d0.pth"
