import os

import pytest

from support.errors import WrongDataError
from unit.test_result_files import Results

KINDS = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link that leads elsewhere": lambda path: path.symlink_to("/etc/passwd"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}
HEADERS = [
    b"PK\x03\x04 an archive",
    b"\x93NUMPY\x01\x00\xff\xff{",
    b"\x93NUMPY\x01\x00\x06\x00" + b"((((((",
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"(" * 5000,
    b"\x93NUMPY\x01\x00\x4a\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976,)}   ",
    b"\x93NUMPY\x01\x00\x34\x00{'descr': '|O', 'fortran_order': False, 'shape': (9,)} ",
    b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.",
]


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "bs4")


@pytest.mark.parametrize("suffix", ["bin", "npy"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_no_result(results, kind, suffix):
    path = results.write(suffix=suffix).files[0]
    path.unlink()
    KINDS[kind](path)
    with pytest.raises(WrongDataError, match=rf"no result of this data set.*: 1: {path.name}"):
        results.summarise().read()


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_header_that_lies_is_refused_and_runs_nothing(results, header, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.write(suffix="npy").files[0].write_bytes(header)
    with pytest.raises(WrongDataError, match=r"holds truncated files, or such of another type.*_0\.npy"):
        results.summarise().read()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["\x1b[31mred_0.bin", "line\nbreak_0.bin", "<script>_0.bin", "n" * 240 + "_0.bin", b"\xff_0.bin"]
)
def test_a_name_that_cannot_be_meant_is_surplus(results, name):
    results.write()
    target = os.fsencode(results.folder) + b"/" + os.fsencode(name)
    with open(target, "wb"):  # noqa: PTH123 - a name that is no text
        pass
    with pytest.raises(WrongDataError, match="no result of this data set"):
        results.summarise().read()


def test_files_that_vanish_while_they_are_read_are_named(results, monkeypatch):
    results.write().summarise()
    victim = results.files[-1]
    monkeypatch.setattr("support.result_files.timing_of", lambda *_: victim.unlink())
    with pytest.raises(WrongDataError, match="changed since they were listed"):
        results.read()


def test_files_that_change_while_they_are_read_are_named(results, monkeypatch):
    results.write().summarise()
    victim = results.files[-1]
    monkeypatch.setattr("support.result_files.timing_of", lambda *_: os.truncate(victim, 40))
    with pytest.raises(WrongDataError, match="changed since they were listed"):
        results.read()
