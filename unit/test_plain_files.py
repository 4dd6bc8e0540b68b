import errno
import os

import pytest

from support.plain_files import read_plain


def test_a_plain_file_is_read_whole_also_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_plain(tmp_path / "file", 7) == read_plain(tmp_path / "link", 7) == b"content"


def test_a_larger_file_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(OSError, match="it has 7 bytes, 6 are the most") as caught:
        read_plain(tmp_path / "file", 6)
    assert caught.value.errno == errno.EFBIG


def test_a_file_that_is_not_there_is_told_from_one_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "file", 7)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path, make):
    make(tmp_path / "file")
    with pytest.raises(OSError, match=r"not a plain file|Is a directory"):
        read_plain(tmp_path / "file", 7)
