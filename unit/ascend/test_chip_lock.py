import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from support.ascend.chip_lock import ChipLock
from support.errors import DeviceBusyError, ToolError

CHECKOUT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from support.ascend.chip_lock import ChipLock
with ChipLock("S1/0", owner="pytest --chip=310P3", wait_seconds=0, folder=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "locks")], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def lock(tmp_path, identity="S1/0", wait=0.0):
    return ChipLock(identity, owner="me", wait_seconds=wait, folder=tmp_path / "locks")


def test_a_chip_held_by_another_process_names_it(tmp_path, holder):
    message = rf"uses the chip S1/0: process {holder.pid} since .*\(pytest --chip=310P3\)\n.*\n.*--wait-device=SECONDS"
    with pytest.raises(DeviceBusyError, match=message), lock(tmp_path):
        pass


def test_another_chip_is_free(tmp_path, holder):
    with lock(tmp_path, "S1/1"):
        pass


def test_a_lock_dies_with_its_holder(tmp_path, holder):
    holder.kill()
    with lock(tmp_path, wait=10):
        pass


def test_one_waits_as_long_as_asked(tmp_path, holder):
    start = time.monotonic()
    with pytest.raises(DeviceBusyError), lock(tmp_path, wait=0.5):
        pass
    assert time.monotonic() - start >= 0.5


def test_a_chip_is_free_again_afterwards(tmp_path):
    for _ in range(2):
        with lock(tmp_path):
            (facts,) = (tmp_path / "locks").glob("*.json")
            assert json.loads(facts.read_text())["owner"] == "me"
        assert not list((tmp_path / "locks").glob("*.json"))


def test_identities_do_not_lead_out_of_the_folder(tmp_path):
    with lock(tmp_path, "../../etc/passwd"):
        assert {path.parent for path in (tmp_path / "locks").iterdir()} == {tmp_path / "locks"}


@pytest.fixture
def private_files():
    mask = os.umask(0o077)
    yield
    os.umask(mask)


@pytest.mark.usefixtures("private_files")
def test_every_user_may_use_the_folder(tmp_path):
    for _ in range(2):
        with lock(tmp_path):
            assert (tmp_path / "locks").stat().st_mode & 0o7777 == 0o1777
            assert {path.stat().st_mode & 0o777 for path in (tmp_path / "locks").iterdir()} == {0o666, 0o644}
        # As it is left by a session that was killed while it made the folder.
        (tmp_path / "locks").chmod(0o700)


AS_ANOTHER = """
import os, sys, tempfile
from pathlib import Path
from support.ascend.chip_lock import ChipLock
from support.errors import DeviceBusyError
# Once before, since what is imported only then may lie where another user cannot read.
with tempfile.TemporaryDirectory() as folder, ChipLock("S2/0", owner="root", wait_seconds=0, folder=Path(folder)):
    pass
os.setgid(65534)
os.setuid(65534)
try:
    with ChipLock("S1/0", owner="another user", wait_seconds=0, folder=Path(sys.argv[1])):
        print("held")
except DeviceBusyError as error:
    print(error)
"""


def as_another_user(folder):
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, str(folder)], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_users_keep_each_other_off_and_wait_for_each_other():
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "locks"
        with ChipLock("S1/0", owner="first user", wait_seconds=0, folder=folder):
            assert "(first user)" in as_another_user(folder)
        # What a killed session of the first user leaves is in nobody's way.
        (left,) = folder.glob("*.lock")
        left.with_suffix(".0.json").write_text("{}")
        assert as_another_user(folder) == "held\n"
        # Nor does a name that leads to a file of the other user lead there.
        victim = Path(place) / "victim"
        victim.touch()
        os.chown(victim, 65534, 65534)
        left.with_suffix(".65534.json").symlink_to(victim)
        # A mode that is not the other user's to repair will do.
        folder.chmod(0o3777)
        assert as_another_user(folder) == "held\n"
        assert victim.read_text() == ""
        with ChipLock("S1/0", owner="first user", wait_seconds=0, folder=folder):
            pass


def names(tmp_path):
    with lock(tmp_path):
        return {path.suffix: path for path in (tmp_path / "locks").iterdir()}


def test_the_last_holder_is_named_and_not_one_that_was_killed_before(tmp_path, holder):
    (name,) = (tmp_path / "locks").glob("*.json")
    left = name.with_name(f"{name.name.split('.')[0]}.4242.json")
    left.write_text('{"pid": 1, "since": "then", "owner": "killed"}')
    os.utime(left, (1, 1))
    name.with_name(f"{name.name.split('.')[0]}.no-file.json").mkdir()
    with pytest.raises(DeviceBusyError, match=f"process {holder.pid} "), lock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "[]", "{}", None])
def test_a_holder_that_left_no_name_keeps_the_chip_all_the_same(tmp_path, holder, text):
    (name,) = (tmp_path / "locks").glob("*.json")
    name.unlink() if text is None else name.write_text(text)
    with pytest.raises(DeviceBusyError, match="S1/0: a process that left no name"), lock(tmp_path):
        pass


def test_a_name_written_by_somebody_else_is_not_followed(tmp_path):
    name = names(tmp_path)[".json"]
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    name.symlink_to(victim)
    with lock(tmp_path):
        assert victim.read_text() == "untouched"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    path = names(tmp_path)[".lock"]
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(ToolError, match=r"lock is a link\n.*remove it"), lock(tmp_path):
        pass
    assert victim.read_text() == "untouched"


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ToolError, match=r"none/locks cannot be made: .*\n.*TMPDIR"), lock(tmp_path / "none"):
        pass


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_that_is_none_is_refused(tmp_path, kind):
    if kind == "file":
        (tmp_path / "locks").touch()
    else:
        (tmp_path / "locks").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ToolError, match="locks is no folder"), lock(tmp_path):
        pass
