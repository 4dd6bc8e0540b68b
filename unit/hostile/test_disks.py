import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def may_mount():
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


pytestmark = pytest.mark.skipif(not may_mount(), reason="needs the right to mount file systems: run as root")

BEGIN = """
import os, sys
from pathlib import Path
from support.errors import SuiteError
folder = Path(sys.argv[1])
def left():
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
def told(what):
    try:
        what()
    except SuiteError as error:
        print(type(error).__name__)
        print(error)
    else:
        print("nothing was told")
"""


def on_disk(mount, code, folder):
    """Run code where a small or read-only file system lies on a folder, in a process with mounts of its own."""
    script = f"mount {mount} && exec {sys.executable} -c {quoted(BEGIN + code)} {folder}"
    command = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


BUILD = """
from support.artifacts import ArtifactStore, Recipe
store = ArtifactStore(folder / "store", lock_seconds=5)
def build(size, resumable=False):
    def write(path):
        path.write_bytes(bytes(size))
        return {}
    return lambda: store.get(Recipe("onnx", 1, {"size": str(size)}), "model.onnx", write, resumable=resumable)
"""


def test_a_full_store_is_told_keeps_what_it_has_and_goes_on_with_room(tmp_path):
    said = on_disk(
        f"-t tmpfs -o size=4m tmpfs {tmp_path}",
        BUILD
        + """
build(1000)()
told(build(8 * 2**20))
told(build(9 * 2**20, resumable=True))
print(left())
print(build(1000)().built, build(2000)().built)
""",
        tmp_path,
    )
    assert said.count("NoSpaceError\n") == 2
    assert said.count(f"the disk of {tmp_path}/store is full") == 2
    assert "--artifacts=DIR" in said
    assert "partial" not in said.splitlines()[-2]
    assert said.splitlines()[-1] == "False True"


def test_a_store_that_is_read_only_is_told(tmp_path):
    said = on_disk(f"-t tmpfs -o size=4m,ro tmpfs {tmp_path}", BUILD + "told(build(1000))", tmp_path)
    assert said.startswith("BuildFailedError")
    assert "Read-only file system" in said
    assert "--artifacts=DIR" in said


def test_a_store_that_is_read_only_still_gives_what_it_holds(tmp_path):
    on_disk(f"--bind {tmp_path} {tmp_path}", BUILD + "build(1000)()", tmp_path)
    mount = f"--bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path}"
    said = on_disk(mount, BUILD + "print(build(1000)().built); told(build(2000))", tmp_path)
    assert said.startswith("False\nBuildFailedError")


def test_a_session_in_a_store_that_is_read_only_is_told_with_the_remedy(tmp_path):
    code = "from support.sessions import SessionFolder; told(lambda: SessionFolder.opened(folder))"
    on_disk(f"--bind {tmp_path} {tmp_path}", code, tmp_path)
    mount = f"--bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path}"
    said = on_disk(mount, code, tmp_path)
    assert said.startswith("BuildFailedError\nopening a session")
    assert "--artifacts=DIR" in said


def test_a_session_without_room_is_told_and_can_end(tmp_path):
    code = """
from support.artifacts import ArtifactStore, Recipe
from support.sessions import SessionFolder
session = SessionFolder.opened(folder)
def measure():
    def write(path):
        path.mkdir()
        for number in range(64):
            (path / f"{number}.npz").write_bytes(bytes(2**20))
        return {}
    return ArtifactStore(session.path, lock_seconds=5).get(Recipe("pass", 1, {}), "pass", write)
told(measure)
session.close()
print(left())
"""
    said = on_disk(f"-t tmpfs -o size=4m tmpfs {tmp_path}", code, tmp_path)
    assert said.startswith("NoSpaceError")
    assert said.splitlines()[-1] == "[]"


def test_evidence_without_room_is_told_and_the_earlier_bundle_stays(tmp_path):
    code = """
from unit.evidence.bundles import World
from support.evidence.bundle import read_bundle
world = World(images=16)
world.write(folder / "bundle")
(folder / "fill").write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - 8192))
told(lambda: world.write(folder / "bundle"))
print(read_bundle(folder / "bundle").document.release.word, sorted(path.name for path in folder.iterdir()))
"""
    said = on_disk(f"-t tmpfs -o size=4m tmpfs {tmp_path}", code, tmp_path)
    assert said.startswith("NoSpaceError")
    assert said.splitlines()[-1].endswith("['bundle', 'fill']")


TENSORS = """
from support.ascend.transfer import Transfer
def passed(scratch=None):
    transfer = Transfer(64 * 2**20, [8 * 2**20], scratch)
    print(transfer.path.parent.parent)
    transfer.input(0)[:] = 1
    transfer.unlink()
"""


def test_tensors_that_shared_memory_has_no_room_for_pass_through_a_disk(tmp_path):
    said = on_disk(
        "-t tmpfs -o size=64m tmpfs /dev/shm",
        TENSORS + "passed(folder); told(lambda: passed(Path('/dev/shm')))",
        tmp_path,
    )
    assert said.startswith(f"{tmp_path}\nNoSpaceError")
    assert "/dev/shm: 64 MiB free" in said
    assert "--scratch=DIR" in said


def test_a_feed_without_room_is_refused_before_it_is_written(tmp_path):
    code = """
from support.artifacts import ArtifactStore
from support.dataset import open_dataset
from support.feed import build_feed
from support.inputs import InputFormat
from support.progress import SilentProgress
from support.spec import load_spec
spec = load_spec("shapes_d0")
kit = open_dataset(Path(spec.dataset.root), spec.dataset)
store = ArtifactStore(folder, lock_seconds=5)
told(lambda: build_feed(store, kit, InputFormat.from_model(spec.model), SilentProgress()))
print(left())
"""
    said = on_disk(f"-t tmpfs -o size=8m tmpfs {tmp_path}", code, tmp_path)
    assert said.startswith("NoSpaceError")
    assert "the feed of 133 images" in said


def test_files_that_another_user_may_not_read_are_named(tmp_path):
    code = """
from support.checkpoint import load_checkpoint
from support.onnx_files import load_onnx
from support.spec import load_spec
spec = load_spec("shapes_d0")
os.setuid(65534)
told(lambda: load_onnx(folder / "secret"))
told(lambda: load_checkpoint(folder / "secret", spec.model, spec.checkpoint))
"""
    (tmp_path / "secret").write_bytes(b"nothing")
    (tmp_path / "secret").chmod(0o600)
    said = on_disk(f"--bind {tmp_path} {tmp_path}", code, tmp_path)
    assert said.count("NoDataError\n") == said.count("Permission denied") == 2
