import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support.ascend import transfer
from support.ascend.transfer import Transfer
from support.errors import NoSpaceError

MIB = 2**20


# Folders with as much room as a test says.
@pytest.fixture
def places(tmp_path, monkeypatch):
    def make(**free):
        room = {}
        for name, mebibytes in free.items():
            (tmp_path / name).mkdir()
            room[tmp_path / name] = mebibytes * MIB
        monkeypatch.setattr(transfer, "MEMORY", tmp_path / "memory")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=room[place]))
        return tmp_path

    return make


def test_input_and_outputs_have_places_of_their_own(places):
    places(memory=100)
    shared = Transfer(3, [2, 4], None)
    for value, data in enumerate([shared.input(0), shared.input(1), *shared.outputs()], start=1):
        data[:] = value
    assert shared.path.read_bytes() == bytes([1] * 3 + [2] * 3 + [3] * 2 + [4] * 4) + bytes(4)
    assert (shared.outputs_start, shared.mark_start) == (6, 12)


@pytest.mark.parametrize("number", [0, 1, 70_000, -1])
def test_the_mark_is_the_number_behind_the_outputs(places, number):
    places(memory=100)
    shared = Transfer(4, [4], None)
    with shared.path.open("r+b") as file:
        file.seek(shared.mark_start)
        file.write(number.to_bytes(4, sys.byteorder, signed=True))
    assert shared.mark == number


def test_outputs_are_there_as_long_as_somebody_looks_at_them(places):
    places(memory=100)
    shared = Transfer(0, [4], None)
    output = shared.outputs()[0]
    output[:] = 7
    shared.unlink()
    shared.unlink()
    assert not shared.path.exists()
    del shared
    np.testing.assert_array_equal(output, 7)


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        ({"memory": 19, "scratch": 100, "temporary": 100}, "memory"),
        ({"memory": 17, "scratch": 19, "temporary": 100}, "scratch"),
        ({"scratch": 19, "temporary": 100}, "scratch"),
    ],
)
def test_memory_is_taken_if_it_has_room_and_else_the_scratch_folder(places, free, chosen):
    folder = places(**free)
    assert Transfer(MIB, [], folder / "scratch").path.parent.parent == folder / chosen


def test_without_a_scratch_folder_temporary_files_have_a_place(places):
    folder = places(memory=0, temporary=19)
    assert Transfer(MIB, [], None).path.parent.parent == folder / "temporary"


def test_no_room_anywhere_is_told_with_sizes_before_anything_is_written(places):
    folder = places(memory=1, scratch=17)
    message = rf"{folder}/memory: 1 MiB free, {folder}/scratch: 17 MiB free\)\n  required: 18 MiB\n.*--scratch=DIR"
    with pytest.raises(NoSpaceError, match=message):
        Transfer(MIB, [], folder / "scratch")
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_room_that_is_gone_when_it_is_taken_is_no_room(places, monkeypatch, code):
    folder, refuse = places(memory=100, scratch=100), os.posix_fallocate

    def fallocate(descriptor, start, size):
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(folder / "memory"):
            raise OSError(code, os.strerror(code))
        refuse(descriptor, start, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    assert Transfer(2, [], folder / "scratch").path.parent.parent == folder / "scratch"
    assert list((folder / "memory").iterdir()) == []


def test_another_failure_is_no_lack_of_room(places, monkeypatch):
    folder = places(memory=100)

    def fallocate(descriptor, start, size):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(OSError, match="Input/output error"):
        Transfer(2, [], None)
    assert list((folder / "memory").iterdir()) == []


def test_what_a_killed_session_left_before_it_was_mapped_goes_with_the_next_one(places):
    folder = places(memory=100)
    code = (
        "import os, support.ascend.transfer as t; from pathlib import Path\n"
        f"t.MEMORY, t.RESERVE = Path({str(folder / 'memory')!r}), 0\n"
        "t.Transfer(3, [2], None); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list((folder / "memory").iterdir())) == 1
    Transfer(3, [2], None).unlink()
    assert list((folder / "memory").iterdir()) == []
