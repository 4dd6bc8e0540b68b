import zipfile

import numpy as np
import pytest

from support import arrays
from support.errors import WrongDataError
from support.evidence.columns import COLUMNS, load_columns, save_columns


@pytest.fixture
def path(world, tmp_path):
    save_columns(tmp_path / "pass.npz", world.passes[8])
    return tmp_path / "pass.npz"


def test_a_pass_takes_less_room_than_its_arrays(world, path):
    bytes_in_all = sum(getattr(world.passes[8], name).nbytes for name in COLUMNS)
    assert path.stat().st_size < bytes_in_all


def test_anchors_are_not_kept(path):
    assert not load_columns(path).anchors.any()


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x03\x04"])
def test_a_file_that_is_no_archive_is_damaged(path, data):
    path.write_bytes(data)
    with pytest.raises(WrongDataError, match=r"pass.npz is damaged"):
        load_columns(path)


def test_an_archive_cut_short_is_damaged(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WrongDataError, match=r"pass.npz is damaged"):
        load_columns(path)


def test_a_missing_column_is_named(world, path):
    np.savez(path, images=world.passes[8].images)
    with pytest.raises(WrongDataError, match=r"holds \['images'\]"):
        load_columns(path)


def test_a_column_of_another_type_is_named(world, path):
    kept = {name: getattr(world.passes[8], name) for name in COLUMNS}
    np.savez(path, **{**kept, "scores": kept["scores"].astype(np.float64)})
    with pytest.raises(WrongDataError, match=r"pass.npz: column scores of the detections is float64"):
        load_columns(path)


def test_pickled_objects_are_not_loaded(world, path):
    kept = {name: getattr(world.passes[8], name) for name in COLUMNS}
    np.savez(path, **{**kept, "scores": np.array([print], dtype=object)})
    with pytest.raises(WrongDataError, match="allow_pickle=False"):
        load_columns(path)


def test_an_archive_that_unpacks_to_more_than_any_pass_is_not_unpacked(path, monkeypatch):
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    monkeypatch.setattr(arrays, "MAX_BYTES", size - 1)
    with pytest.raises(WrongDataError, match=rf"unpacks to {size} bytes"):
        load_columns(path)
