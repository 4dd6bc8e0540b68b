import io
import zipfile

import numpy as np
import pytest

from support import arrays
from support.arrays import load_arrays
from support.errors import WrongDataError


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (self.canary, "w")


def test_arrays_are_read_as_they_were_written(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.arange(3), second=np.eye(2))
    found = load_arrays(tmp_path / "a.npz", remedy="")
    assert found.keys() == {"first", "second"}
    np.testing.assert_array_equal(found["second"], np.eye(2))


def test_an_object_in_an_array_is_refused_and_never_made(tmp_path):
    trapped = np.array([Trap(str(tmp_path / "canary"))], dtype=object)
    np.savez(tmp_path / "a.npz", first=trapped)
    with pytest.raises(WrongDataError, match=r"a\.npz is damaged: Object arrays cannot be loaded"):
        load_arrays(tmp_path / "a.npz", remedy="")
    assert not (tmp_path / "canary").exists()


def test_an_archive_that_unpacks_to_more_than_any_of_ours_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", first=np.zeros(10_000))
    monkeypatch.setattr(arrays, "MAX_BYTES", 10_000)
    with pytest.raises(WrongDataError, match=r"unpacks to 80\d\d\d bytes\n.*at most 10000"):
        load_arrays(tmp_path / "a.npz", remedy="")


@pytest.mark.parametrize("shape", ["(1152921504606846976,)", "(-1,)", "(1e3,)", "(" * 200 + ")" * 200])
def test_a_shape_that_no_array_has_is_damage(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    data = io.BytesIO(b"")
    data.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("first.npy", data.getvalue())
    with pytest.raises(WrongDataError, match=r"a\.npz is damaged"):
        load_arrays(tmp_path / "a.npz", remedy="write it again")


def test_a_compression_that_python_does_not_know_is_damage(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.arange(3))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    for sign, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(sign) + place] = 99
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(WrongDataError, match="compression method is not supported"):
        load_arrays(tmp_path / "a.npz", remedy="")
