import dataclasses
import datetime as dt
import gzip
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

import support.devices
from support.ascend.host import real_host
from support.candidate import BuiltModels
from support.errors import ToolError
from support.evidence import roots
from support.evidence.bundle import read_bundle
from support.evidence.collection import CHECKOUT, Session, write_evidence
from support.faults.outcome import selftest
from support.faults.record import RECORD
from support.localiser.record import Localisation
from support.options import RunOptions
from support.progress import SilentProgress
from support.results import Results
from support.run import Run
from support.verdict import ClauseVerdict, release_verdict
from support.waivers import Waiver
from unit.test_run import IMAGES, KIT, MACHINE, SMALL, Device

BATCHES = (1, 4)
STARTED = dt.datetime(2026, 11, 24, 8, tzinfo=dt.timezone.utc)
WAIVER = Waiver(clause="coverage", reason="known", owner="QA", expires=STARTED.date())


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr(support.devices, "open_on_chip", lambda model, chip: Device(int(model.path.stem), found))
    return found


@pytest.fixture
def run(tmp_path, calls):
    for batch in BATCHES:
        (tmp_path / f"{batch}.onnx").write_text(f"model {batch}")
    options = RunOptions(
        spec="shapes_d0",
        coco_root=KIT,
        onnx=f"{tmp_path}/{{batch}}.onnx",
        limit=IMAGES,
        artifacts=tmp_path / "artifacts",
        batch_sizes=BATCHES,
    )
    return Run(options, SMALL, MACHINE, tmp_path / "session", SilentProgress(), real_host())


def session(run, results=None, **changes):
    clauses = [ClauseVerdict(clause="coverage", word="undetermined", reason="tool-error", findings=("lost",))]
    facts = {
        "options": run.options if run else RunOptions(spec="shapes_d0"),
        "spec": SMALL,
        "capabilities": MACHINE,
        "argv": ["-m", "acceptance"],
        "started": STARTED,
        "run": run,
        "results": results,
        "release": release_verdict(clauses, [("coverage", None)], scope="gate", subject="shapes_d0 on cpu"),
        "waivers": (WAIVER,),
    }
    return Session(**{**facts, **changes})


def test_a_session_that_never_built_a_run_has_evidence_of_its_verdict(tmp_path):
    read = read_bundle(write_evidence(tmp_path / "b", session(None), images=True))
    document = read.document
    assert document.release.line == "undetermined: shapes_d0 on cpu (not a release): tool-error"
    assert (document.passes, document.dataset, document.reference, document.models) == ({}, None, None, ())
    assert (document.waivers, document.started, document.asked.argv) == ((WAIVER,), STARTED, ("-m", "acceptance"))
    assert sorted(document.files) == ["report.html", "report.md"]


def test_a_run_that_measured_nothing_is_not_made_to(run, calls, tmp_path):
    write_evidence(tmp_path / "b", session(run, Results(run)), images=True)
    assert (run.memory, run.built.memory, calls) == ({}, {}, [])
    assert not (tmp_path / "artifacts").exists()


def test_what_was_measured_is_told_and_nothing_more_measured(run, calls, tmp_path):
    results = Results(run)
    measured = run.candidate(4)
    before = set(run.memory), set(results.memory), len(calls)
    read = read_bundle(write_evidence(tmp_path / "b", session(run, results), images=True))
    assert (set(run.memory), set(results.memory), len(calls)) == before
    document = read.document
    assert list(document.passes) == [4]
    assert document.passes[4].timing == measured.timing
    assert document.passes[4].model_sha256 == run.model(4).sha256
    assert [(model.kind, model.batch, model.sha256) for model in document.models] == [("onnx", 4, run.model(4).sha256)]
    assert (document.dataset.images, document.dataset.whole) == (IMAGES, 133)
    assert read.truth.coco["images"] == run.dataset.truth.coco["images"]
    for column in ("images", "image_ids", "boxes", "scores", "category_ids"):
        np.testing.assert_array_equal(getattr(read.passes[4], column), getattr(measured.detections, column))


def test_a_search_for_the_cause_and_the_last_self_test_are_told(run, tmp_path):
    found = Localisation(suspect="stem", red=("coverage",), batch=1, seconds=8.4)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / RECORD).write_text(selftest([], [], full=False).model_dump_json())
    read = read_bundle(write_evidence(tmp_path / "b", session(run, localisation=found), images=False))
    assert read.document.localisation == found
    assert read.document.selftest.same_code
    for page in ("report.html", "report.md"):
        text = (tmp_path / "b" / page).read_text()
        assert "look first at: stem" in text
        assert "\\n" not in text
        assert "0 of 0 faults caught" in text


def test_what_failed_is_not_told_as_measured(run, monkeypatch, tmp_path):
    def lost(model, chip):
        raise ToolError("lost")

    monkeypatch.setattr(support.devices, "open_on_chip", lost)
    with pytest.raises(ToolError):
        run.candidate(4)
    document = read_bundle(write_evidence(tmp_path / "b", session(run, Results(run)), images=True)).document
    assert document.passes == {}
    assert document.dataset is not None


@pytest.mark.parametrize("images", [True, False])
def test_pictures_are_left_out_if_nobody_wants_them(run, calls, tmp_path, images):
    run.candidate(1)
    folder = write_evidence(tmp_path / "b", session(run, Results(run)), images=images)
    names = read_bundle(folder).document.files
    assert any(name.startswith("pictures/") for name in names) == images
    assert ("data:image/jpeg" in (folder / "report.html").read_text()) == images


def test_every_name_that_is_recalled_is_one_that_is_remembered(tmp_path):
    class Asked(dict):
        def get(self, key, default=None):
            names.add(key[0])
            return super().get(key, default)

    for owner, keeper in (("run", Run), ("results", Results), ("built", BuiltModels)):
        names = set()
        memories = {name: {} for name in ("run", "results", "built")} | {owner: Asked()}
        fake = SimpleNamespace(
            memory=memories["run"], spec=SMALL, precision="full", built=SimpleNamespace(memory=memories["built"])
        )
        told = dataclasses.replace(session(None), run=fake, results=SimpleNamespace(memory=memories["results"]))
        write_evidence(tmp_path / owner, told, images=True)
        assert names
        for name in names:
            member = getattr(keeper, name)
            assert hasattr(getattr(member, "fget", member), "__wrapped__"), f"{keeper.__name__}.{name}"


# --- what it does not tell


def contents(folder):
    """Give every byte that a reader can get at: of files, and unpacked from archives."""
    for path in sorted(folder.rglob("*")):
        yield path.name, path.name.encode()
        if path.is_file():
            yield path.name, path.read_bytes()
        if path.suffix == ".gz":
            yield path.name, gzip.decompress(path.read_bytes())
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                yield from ((path.name, archive.read(name)) for name in archive.namelist())
                yield path.name, archive.comment


def test_neither_user_host_home_places_nor_secrets_are_in_any_byte_of_it(run, calls, tmp_path, monkeypatch):
    home = tmp_path / "home-of-alice"
    words = ["zq-host", "zq-alice", "home-of-alice", str(tmp_path), str(CHECKOUT), "hunter2", "s3cr3t"]
    monkeypatch.setattr(roots.platform, "node", lambda: "zq-host.example.org")
    monkeypatch.setattr(roots.getpass, "getuser", lambda: "zq-alice")
    monkeypatch.setattr(roots.Path, "home", lambda: home)
    run.candidate(1)
    text = f"zq-alice on zq-host: {home}/x.onnx, {tmp_path}/1.onnx, {CHECKOUT}/a.py, https://u:hunter2@example.org"
    clause = ClauseVerdict(
        clause="coverage", word="rejected", findings=(text,), suspect=text, origin={"log": text, text: "log"}
    )
    told = session(
        run,
        Results(run),
        release=release_verdict([clause], [("coverage", None)], scope="gate", subject="shapes_d0 on cpu"),
        argv=[
            f"--onnx={tmp_path}/{{batch}}.onnx",
            f"--coco-root={home}/coco",
            "--api-token=s3cr3t",
            f"{CHECKOUT}/acceptance",
        ],
        waivers=(WAIVER.model_copy(update={"reason": text}),),
        capabilities=MACHINE.model_copy(update={"host": "zq-host"}),
    )
    folder = write_evidence(tmp_path / "b", told, images=True)
    found = [(name, word) for name, data in contents(folder) for word in words if word.encode() in data]
    assert found == [], found


def test_pictures_and_drawings_carry_no_comment_of_their_maker(run, calls, tmp_path):
    run.candidate(1)
    folder = write_evidence(tmp_path / "b", session(run, Results(run)), images=True)
    pictures = [path.read_bytes() for path in (folder / "pictures").iterdir()]
    assert pictures
    # Neither Exif nor a comment.
    assert not [data for data in pictures if b"Exif" in data or b"\xff\xfe" in data[:200]]
    html = (folder / "report.html").read_text()
    assert "<svg" in html
    assert not [word for word in ("dc:date", "dc:creator", "Created with") if word in html]
