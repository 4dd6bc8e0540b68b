import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support import artifacts
from support.artifacts import Artifact, ArtifactStore, Recipe, file_sha256
from support.errors import BuildFailedError, NoSpaceError, SuiteTimeoutError

CHECKOUT = Path(__file__).resolve().parents[1]
RECIPE = Recipe("toy", 1, {"weights": "ab" * 32}, {"shape": (1, 3)}, {"tool": "1.0"})


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store", lock_seconds=30)


def write_hello(path):
    path.write_text("hello")
    return {"note": "made"}


def refuse(path):
    raise AssertionError("must not build")


def files_of(store):
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def entry_of(artifact):
    return artifact.path.parent


def test_an_artifact_is_built_once_and_then_reused(store):
    first = store.get(RECIPE, "a.txt", write_hello)
    second = store.get(RECIPE, "a.txt", refuse)
    assert (first.built, second.built) == (True, False)
    assert dataclasses.replace(second, built=True) == first
    assert first.sha256 == file_sha256(first.path)
    assert first.parents == ("ab" * 32,)
    assert first.made_by["facts"] == {"note": "made"}


def test_a_product_appears_under_its_name_only_when_it_is_whole(store):
    def build(path):
        path.write_text("half")
        assert not (store.root / "toy").exists()
        path.write_text("whole")
        return {}

    assert store.get(RECIPE, "a.txt", build).path.read_text() == "whole"
    assert not list((store.root / "partial").iterdir())


def test_the_key_does_not_depend_on_the_order_of_options_or_on_tuples():
    one = Recipe("toy", 1, {"a": "1", "b": "2"}, {"x": [1, 2], "y": 3})
    other = Recipe("toy", 1, {"b": "2", "a": "1"}, {"y": 3, "x": (1, 2)})
    assert one.key == other.key
    assert one.as_json() == other.as_json()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"version": 2},
        {"inputs": {"weights": "cd" * 32}},
        {"inputs": {}},
        {"options": {"shape": (4, 3)}},
        {"tools": {"tool": "1.1"}},
    ],
)
def test_every_part_of_the_recipe_changes_the_key(change, store):
    other = dataclasses.replace(RECIPE, **change)
    assert other.key != RECIPE.key
    store.get(RECIPE, "a.txt", write_hello)
    assert store.get(other, "a.txt", write_hello).built


def flip_a_byte(entry):
    (entry / "a.txt").write_text("jello")


def truncate(entry):
    (entry / "a.txt").write_text("hell")


def remove_the_product(entry):
    (entry / "a.txt").unlink()


def spoil_the_manifest(entry):
    (entry / "artifact.json").write_text("{")


def empty_the_file_list(entry):
    edit_manifest(entry, files={})


def drop_the_facts(entry):
    manifest = json.loads((entry / "artifact.json").read_text())
    del manifest["facts"]
    (entry / "artifact.json").write_text(json.dumps(manifest))


def swap_the_recipe(entry):
    edit_manifest(entry, recipe=Recipe("toy", 9, {}).as_json())


def edit_manifest(entry, **change):
    manifest = json.loads((entry / "artifact.json").read_text())
    (entry / "artifact.json").write_text(json.dumps({**manifest, **change}))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        truncate,
        remove_the_product,
        spoil_the_manifest,
        empty_the_file_list,
        drop_the_facts,
        swap_the_recipe,
    ],
)
def test_a_damaged_entry_is_built_again(damage, store):
    damage(entry_of(store.get(RECIPE, "a.txt", write_hello)))
    again = store.get(RECIPE, "a.txt", write_hello)
    assert again.built
    assert again.path.read_text() == "hello"
    assert not store.get(RECIPE, "a.txt", refuse).built


def test_an_entry_that_is_a_file_gives_way(store):
    entry = entry_of(store.get(RECIPE, "a.txt", write_hello))
    for file in entry.iterdir():
        file.unlink()
    entry.rmdir()
    entry.write_text("in the way")
    assert store.get(RECIPE, "a.txt", write_hello).built


def test_an_entry_without_the_product_asked_for_is_built_again(store):
    store.get(RECIPE, "a.txt", write_hello)
    assert store.get(RECIPE, "b.txt", write_hello).built


def test_a_folder_with_files_beside_it_is_verified_whole(store):
    def build(path):
        path.mkdir()
        (path / "one").write_text("1")
        path.with_name("tool.log").write_text("log")
        return {}

    first = store.get(RECIPE, "folder", build)
    assert store.get(RECIPE, "folder", refuse).sha256 == first.sha256
    (first.path / "one").write_text("2")
    assert store.get(RECIPE, "folder", build).built
    first.path.with_name("tool.log").write_text("lag")
    assert store.get(RECIPE, "folder", build).built


def test_of_a_self_verifying_file_only_the_size_is_checked(store):
    def build(path):
        path.mkdir()
        (path / "pixels").write_text("pixels")
        return {}

    made = store.get(RECIPE, "feed", build, self_verifying=("pixels",))
    (made.path / "pixels").write_text("PIXELS")
    assert not store.get(RECIPE, "feed", refuse, self_verifying=("pixels",)).built
    (made.path / "pixels").write_text("pixel")
    assert store.get(RECIPE, "feed", build, self_verifying=("pixels",)).built


def test_a_builder_that_writes_nothing_is_an_error_and_leaves_nothing(store):
    with pytest.raises(BuildFailedError, match=r"building toy ended without writing a\.txt"):
        store.get(RECIPE, "a.txt", lambda path: {})
    assert [name for name in files_of(store) if not name.startswith("locks")] == []


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_a_builder_that_fails_leaves_nothing(error, store):
    def build(path):
        path.write_text("half")
        raise error

    with pytest.raises(type(error)):
        store.get(RECIPE, "a.txt", build)
    assert [name for name in files_of(store) if not name.startswith("locks")] == []
    assert store.get(RECIPE, "a.txt", write_hello).built


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("resumable", [True, False])
def test_a_full_disk_is_told_and_leaves_nothing(number, resumable, store):
    def build(path):
        path.write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(NoSpaceError, match=r"the disk of .*store is full") as caught:
        store.get(RECIPE, "a.txt", build, resumable=resumable)
    assert "--artifacts=DIR" in caught.value.remedy
    assert [name for name in files_of(store) if not name.startswith("locks")] == []


def test_a_disk_that_fills_up_with_the_manifest_is_told_and_leaves_nothing(store, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts, "_write_durably", full)
    with pytest.raises(NoSpaceError, match="is full"):
        store.get(RECIPE, "a.txt", write_hello)
    assert [name for name in files_of(store) if not name.startswith("locks")] == []


def test_another_error_of_the_file_system_names_its_file(store):
    def build(path):
        (path / "deep").write_text("no such folder")

    with pytest.raises(BuildFailedError, match=r"building toy in .* failed: .*No such file.*deep"):
        store.get(RECIPE, "a.txt", build)


def test_a_resumable_builder_finds_what_the_failed_one_left(store):
    def fails(path):
        path.write_text("half")
        raise ValueError("stopped")

    def resumes(path):
        path.write_text(path.read_text() + " and half")
        return {}

    with pytest.raises(ValueError, match="stopped"):
        store.get(RECIPE, "a.txt", fails, resumable=True)
    assert store.get(RECIPE, "a.txt", resumes, resumable=True).path.read_text() == "half and half"


def test_a_store_that_cannot_be_written_still_serves_what_it_holds(store, monkeypatch):
    store.get(RECIPE, "a.txt", write_hello)

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(artifacts, "FileLock", denied)
    assert not store.get(RECIPE, "a.txt", refuse).built
    with pytest.raises(BuildFailedError, match=r"locking toy-.* failed: .*Permission denied") as caught:
        store.get(dataclasses.replace(RECIPE, version=2), "a.txt", write_hello)
    assert "--artifacts=DIR" in caught.value.remedy


def test_a_store_whose_root_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BuildFailedError, match="locking toy-"):
        ArtifactStore(tmp_path / "file", lock_seconds=1).get(RECIPE, "a.txt", write_hello)


def test_a_full_disk_is_told_before_the_store_exists(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(NoSpaceError, match="is full"):
        ArtifactStore(tmp_path / "store", lock_seconds=1).get(RECIPE, "a.txt", write_hello)


def test_waiting_too_long_for_another_builder_is_told(store):
    impatient = ArtifactStore(store.root, lock_seconds=0.05)

    def build(path):
        with pytest.raises(SuiteTimeoutError, match=f"has been building toy-{RECIPE.key[:20]} for 0 s"):
            impatient.get(RECIPE, "a.txt", refuse)
        return write_hello(path)

    assert store.get(RECIPE, "a.txt", build).built


def test_a_waiting_thread_takes_what_the_other_built(store):
    results = []

    def slow(path):
        waiter.start()
        return write_hello(path)

    waiter = threading.Thread(target=lambda: results.append(store.get(RECIPE, "a.txt", refuse)))
    assert store.get(RECIPE, "a.txt", slow).built
    waiter.join()
    assert [result.built for result in results] == [False]


BUILDER = """
import sys, time
from pathlib import Path
from support.artifacts import ArtifactStore, Recipe

def build(path):
    path.write_text("half" if sys.argv[2] == "hang" else "whole")
    with open(sys.argv[3], "a") as log:
        log.write("built\\n")
    print("building", flush=True)
    time.sleep(60 if sys.argv[2] == "hang" else 0.3)
    return {}

recipe = Recipe("toy", 1, {"weights": "ab" * 32}, {"shape": (1, 3)}, {"tool": "1.0"})
artifact = ArtifactStore(Path(sys.argv[1]), lock_seconds=30).get(recipe, "a.txt", build)
print(artifact.sha256, artifact.built)
"""


def start_builder(store, mode, log):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, store.root, mode, log], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )


def test_four_processes_build_once(store, tmp_path):
    log = tmp_path / "log"
    builders = [start_builder(store, "quick", log) for _ in range(4)]
    endings = [builder.communicate(timeout=60)[0].splitlines()[-1].split() for builder in builders]
    assert log.read_text() == "built\n"
    assert len({digest for digest, _ in endings}) == 1
    assert sorted(built for _, built in endings) == ["False", "False", "False", "True"]


def test_a_builder_killed_midway_leaves_nothing_that_looks_finished(store, tmp_path):
    builder = start_builder(store, "hang", tmp_path / "log")
    assert builder.stdout.readline() == "building\n"
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=60)

    def build(path):
        assert not path.exists()
        return write_hello(path)

    artifact = store.get(RECIPE, "a.txt", build)
    assert isinstance(artifact, Artifact)
    assert artifact.path.read_text() == "hello"


def test_the_summary_counts_each_artifact_once_as_built_or_reused(tmp_path):
    def taken(store):
        for kind in ("onnx", "feed", "feed"):
            store.get(Recipe(kind, 1, {}), "product", lambda path: path.write_text("x") and {})
        return store.summary

    first, second = (ArtifactStore(tmp_path, lock_seconds=5) for _ in range(2))

    assert taken(first) == f"2 built, 0 reused in {tmp_path}"
    assert taken(second) == f"0 built, 2 reused in {tmp_path}"
