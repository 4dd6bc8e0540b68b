import hashlib
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from support.artifacts import file_sha256
from support.errors import BuildFailedError, NoDataError, UsageError, WrongDataError
from support.evidence.bundle import read_bundle, write_bundle
from support.evidence.model import EVIDENCE, SEAL, EvidenceDocument
from support.evidence.seal import MAX_BYTES

FILES = [
    "detections/bs1.npz",
    "detections/bs8.npz",
    "detections/reference.npz",
    "ground_truth.json.gz",
    "pictures/worst.jpg",
    "report.md",
]


def pages(bundle):
    (bundle.folder / "report.md").write_text(f"{bundle.document.release.line}, {len(bundle.passes)} passes")


@pytest.fixture(scope="session")
def made(world, document, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "bundle"
    return world.write(folder, document, pictures={"worst.jpg": b"a picture"}, write_pages=pages)


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made, tmp_path / "bundle")


def resealed(bundle):
    """Make the hashes fit again, as somebody does who edits a bundle with care."""
    facts = json.loads((bundle / EVIDENCE).read_text())
    for name, entry in facts["files"].items():
        if (bundle / name).is_file():
            entry |= {"bytes": (bundle / name).stat().st_size, "sha256": file_sha256(bundle / name)}
    write_facts(bundle, facts)


def write_facts(bundle, facts):
    (bundle / EVIDENCE).write_text(json.dumps(facts))
    (bundle / SEAL).write_text(f"{file_sha256(bundle / EVIDENCE)}  {EVIDENCE}\n")


def test_a_bundle_gives_back_what_was_written(bundle, world, document):
    read = read_bundle(bundle)
    assert read.document.model_copy(update={"files": {}}) == document
    assert read.truth == world.truth
    for column in ("images", "image_ids", "boxes", "scores", "category_ids"):
        assert np.array_equal(getattr(read.passes[8], column), getattr(world.passes[8], column))
        assert np.array_equal(getattr(read.reference, column), getattr(world.reference, column))


def test_a_bundle_lists_every_file_but_its_seal(bundle):
    assert sorted(read_bundle(bundle).document.files) == FILES


def test_pages_are_made_from_the_bundle_and_sealed_with_it(bundle):
    assert (bundle / "report.md").read_text().endswith(", 2 passes")


def test_the_seal_is_one_that_sha256sum_reads(bundle):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not on this host")
    subprocess.run(["sha256sum", "--check", "--status", SEAL], cwd=bundle, check=True)


def test_equal_parts_give_equal_bytes(world, document, tmp_path):
    one, other = (world.write(tmp_path / name, document) for name in ("one", "other"))
    assert file_sha256(one / EVIDENCE) == file_sha256(other / EVIDENCE)


@pytest.mark.parametrize("name", [*FILES, EVIDENCE, SEAL])
def test_one_byte_changed_in_any_file_is_found_and_the_file_named(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(WrongDataError, match=re.escape(EVIDENCE if name == SEAL else name)):
        read_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(WrongDataError, match=rf"{name} is missing from the bundle"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", [EVIDENCE, SEAL])
def test_a_folder_without_evidence_or_seal_is_no_bundle(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(NoDataError, match=rf"{name} is not a file\n  required: a bundle of evidence"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["notes.txt", "detections/bs4.npz", ".hidden"])
def test_a_foreign_file_is_named(bundle, name):
    (bundle / name).write_text("")
    with pytest.raises(WrongDataError, match=rf"{re.escape(name)} does not belong to the bundle"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["detections/bs8.npz", "more"])
def test_a_symbolic_link_is_refused_even_to_an_equal_file(bundle, made, name):
    (bundle / name).unlink(missing_ok=True)
    (bundle / name).symlink_to(made / "detections/bs8.npz")
    with pytest.raises(WrongDataError, match=rf"{name} is not a file"):
        read_bundle(bundle)


def test_a_linked_folder_is_refused(bundle, made):
    shutil.rmtree(bundle / "detections")
    (bundle / "detections").symlink_to(made / "detections")
    with pytest.raises(WrongDataError, match="detections is not a file"):
        read_bundle(bundle)


def test_a_pipe_is_refused_and_not_waited_for(bundle):
    os.mkfifo(bundle / "pipe")
    with pytest.raises(WrongDataError, match="pipe is not a file"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd"])
def test_a_name_that_leaves_the_bundle_is_refused(bundle, name):
    facts = json.loads((bundle / EVIDENCE).read_text())
    facts["passes"]["8"]["detections"] = name
    write_facts(bundle, facts)
    with pytest.raises(WrongDataError, match=r"evidence.json: passes.8.detections: String should match"):
        read_bundle(bundle)


def test_a_part_that_is_not_among_the_sealed_files_is_refused(bundle):
    facts = json.loads((bundle / EVIDENCE).read_text())
    facts["passes"]["8"]["detections"] = "detections/bs9.npz"
    write_facts(bundle, facts)
    with pytest.raises(WrongDataError, match=r"names detections/bs9.npz, which is not among its files"):
        read_bundle(bundle)


def test_evidence_of_another_version_names_the_revision_to_use(bundle):
    facts = json.loads((bundle / EVIDENCE).read_text())
    facts["schema_version"] = 2
    write_facts(bundle, facts)
    with pytest.raises(WrongDataError, match=r"schema_version: Input should be 1[\s\S]*code.revision"):
        read_bundle(bundle)


def test_evidence_too_large_to_be_any_is_not_parsed(bundle):
    with (bundle / EVIDENCE).open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(WrongDataError, match=rf"has {MAX_BYTES + 1} bytes"):
        read_bundle(bundle)


def test_a_file_whose_hash_was_made_to_fit_and_is_no_array_is_refused_when_it_is_read(bundle):
    (bundle / "detections/bs8.npz").write_bytes(b"PK no archive")
    resealed(bundle)
    with pytest.raises(WrongDataError, match=r"bs8.npz is damaged"):
        _ = read_bundle(bundle).passes


def test_a_bundle_replaces_an_earlier_one(world, document, bundle):
    world.write(bundle, document)
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle"]
    assert not (bundle / "report.md").exists()
    read_bundle(bundle)


@pytest.mark.parametrize("make", [lambda path: path.write_text("mine"), lambda path: path.mkdir()])
def test_a_bundle_replaces_nothing_else(world, document, tmp_path, make):
    folder = tmp_path / "thesis"
    make(folder)
    if folder.is_dir():
        (folder / "chapter.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis holds other files: (thesis|chapter.tex)"):
        world.write(folder, document)


def test_a_page_that_fails_leaves_neither_half_a_bundle_nor_the_loss_of_the_earlier_one(world, document, bundle):
    def fail(_):
        raise RuntimeError("no ink")

    before = hashlib.sha256((bundle / EVIDENCE).read_bytes()).hexdigest()
    with pytest.raises(RuntimeError, match="no ink"):
        world.write(bundle, document, write_pages=fail)
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert file_sha256(bundle / EVIDENCE) == before


def test_a_folder_that_cannot_be_made_is_told(world, document, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildFailedError, match=r"writing the evidence in .* failed"):
        world.write(tmp_path / "file" / "bundle", document)


def test_a_picture_may_not_lead_out_of_the_bundle(world, document, tmp_path):
    with pytest.raises(ValueError, match="String should match pattern"):
        world.write(tmp_path / "bundle", document, pictures={"../../x.jpg": b""})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"detections": {}}, r"detections of batch sizes \[\], the document has \[1, 8\]"),
        ({"reference": None}, "reference: either given and in the document, or neither"),
        ({"truth": None}, "truth: either given and in the document, or neither"),
    ],
)
def test_parts_that_are_not_those_of_the_document_are_refused(world, document, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        world.write(tmp_path / "bundle", document, **given)


def test_a_run_that_was_stopped_before_anything_was_measured_has_a_bundle_too(document, tmp_path):
    nothing = {"passes": {}, "reference": None, "truth": None, "dataset": None, "ladder": None, "checkpoint": None}
    stopped = EvidenceDocument.model_validate({**dict(document), **nothing})
    folder = write_bundle(tmp_path / "bundle", stopped, detections={}, reference=None, truth=None, pictures={})
    read = read_bundle(folder)
    assert (read.passes, read.reference, read.truth) == ({}, None, None)


def test_what_a_killed_session_left_unfinished_is_cleared_away(world, tmp_path):
    (tmp_path / ".acceptance-bundle-left/bundle").mkdir(parents=True)
    world.write(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
