import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.errors import NoSpaceError, ToolError
from support.own_folders import OwnFolder

CHECKOUT = Path(__file__).resolve().parents[1]
OWNER = """
import sys
from pathlib import Path
from support.errors import NoSpaceError, ToolError
from support.own_folders import OwnFolder
folder = OwnFolder("test-", Path(sys.argv[1]))
(folder.path / "model.om").touch()
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_a_folder_is_ours_alone_and_gone_when_it_is_closed(tmp_path):
    folder = OwnFolder("test-", tmp_path)
    assert folder.path.parent == tmp_path
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.close()
    assert list(tmp_path.iterdir()) == []
    folder.close()


@pytest.mark.parametrize("ending", [signal.SIGKILL, None], ids=["killed", "alive"])
def test_the_next_one_clears_away_what_a_killed_process_left_and_nothing_else(tmp_path, ending):
    (tmp_path / "other").mkdir()
    (tmp_path / "test-file").touch()
    (tmp_path / "test-link").symlink_to("other")
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        left = Path(process.stdout.readline().strip())
        assert (left / "model.om").exists()
        if ending:
            process.send_signal(ending)
            process.wait()
        folder = OwnFolder("test-", tmp_path)
        assert left.exists() == (ending is None)
        folder.close()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert {path.name for path in tmp_path.iterdir()} >= {"other", "test-file", "test-link"}


def test_two_of_one_process_leave_each_other_alone(tmp_path):
    first, second = OwnFolder("test-", tmp_path), OwnFolder("test-", tmp_path)
    assert first.path.is_dir()
    assert second.path.is_dir()
    first.close()
    second.close()


def test_a_folder_that_is_taken_away_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    taken, flock = [], fcntl.flock

    def slow(descriptor, how):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].rmdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    folder = OwnFolder("test-", tmp_path)
    assert folder.path.is_dir()
    assert folder.path not in taken
    folder.close()


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EROFS, ToolError)])
def test_a_place_that_cannot_be_written_is_named_with_the_remedy(tmp_path, monkeypatch, code, kind):
    def refuse(**_):
        raise OSError(code, "refused")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(kind, match=rf"made in {tmp_path}: refused\n.*TMPDIR"):
        OwnFolder("test-", tmp_path)
