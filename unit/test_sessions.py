import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.sessions import SessionFolder

CHECKOUT = Path(__file__).resolve().parents[1]
SESSION = """
import sys, time
from pathlib import Path
from support.sessions import SessionFolder
folder = SessionFolder.opened(Path(sys.argv[1]))
(folder.path / "pass").mkdir(parents=True)
print(folder.path, flush=True)
sys.stdin.read()
"""


@contextmanager
def session_elsewhere(root):
    command = [sys.executable, "-c", SESSION, str(root)]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def used(folder):
    (folder.path / "pass").mkdir(parents=True)
    (folder.path / "pass/detections.npz").write_bytes(b"\0")
    return folder


def test_a_folder_is_gone_when_its_session_ends(tmp_path):
    folder = used(SessionFolder.opened(tmp_path))
    assert tmp_path in folder.path.parents
    folder.close()
    assert list((tmp_path / "sessions").iterdir()) == []
    folder.close()


def test_a_session_that_measured_nothing_ends_as_well(tmp_path):
    folder = SessionFolder.opened(tmp_path / "new/store")
    assert not folder.path.exists()
    folder.close()
    assert list((tmp_path / "new/store/sessions").iterdir()) == []


def test_two_sessions_have_two_folders_and_leave_each_other_alone(tmp_path):
    first, second = used(SessionFolder.opened(tmp_path)), used(SessionFolder.opened(tmp_path))
    assert first.path != second.path
    second.close()
    assert (first.path / "pass/detections.npz").is_file()
    first.close()


def test_a_worker_shares_the_folder_and_does_not_remove_it(tmp_path):
    folder = used(SessionFolder.opened(tmp_path))
    worker = SessionFolder.joined(str(folder.path))
    assert worker.path == folder.path
    worker.close()
    assert folder.path.is_dir()
    folder.close()


@pytest.mark.parametrize("ending", [signal.SIGKILL, None], ids=["killed", "alive"])
def test_the_next_session_clears_away_what_a_killed_one_left_and_nothing_else(tmp_path, ending):
    with session_elsewhere(tmp_path) as (process, left):
        assert left.is_dir()
        if ending:
            process.send_signal(ending)
            process.wait()
        folder = SessionFolder.opened(tmp_path)
        assert left.is_dir() == (ending is None)
        assert left.with_suffix(".lock").exists() == (ending is None)
        folder.close()
