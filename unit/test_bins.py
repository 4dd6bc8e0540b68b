from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import support.feed
from support.artifacts import ArtifactStore
from support.bins import check_bins, write_bins
from support.dataset import open_dataset
from support.errors import NoDataError, NoSpaceError, UsageError, WrongDataError
from support.feed import build_feed
from support.inputs import InputFormat
from support.progress import SilentProgress
from support.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
SPEC = load_spec("shapes_d0")
FORMAT = replace(InputFormat.from_model(SPEC.model), size=128)
COUNT = 7


@pytest.fixture(scope="module")
def kit():
    return open_dataset(ROOT / "fixtures/data/shapes", SPEC.dataset)


@pytest.fixture(scope="module")
def feed(kit, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("feed"), lock_seconds=60)
    return build_feed(store, kit.limited(COUNT), FORMAT, SilentProgress())


@pytest.fixture
def folder(feed, kit, tmp_path):
    assert write_bins(feed, kit, tmp_path / "bins", SilentProgress()) == COUNT
    return tmp_path / "bins"


def test_every_picture_becomes_a_file_named_after_its_jpeg(folder, kit):
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{Path(image.file_name).stem}.bin" for image in kit.images[:COUNT]
    ]


def test_a_file_holds_one_little_endian_tensor(folder, feed, kit):
    path = folder / f"{Path(kit.images[3].file_name).stem}.bin"
    assert path.stat().st_size == 3 * 128 * 128 * 4
    np.testing.assert_array_equal(np.fromfile(path, "<f4").reshape(1, 3, 128, 128), feed.tensors([3]))


def test_a_file_of_the_real_input_size_has_the_guides_bytes(kit, tmp_path):
    store = ArtifactStore(tmp_path / "store", lock_seconds=60)
    feed = build_feed(store, kit.limited(1), replace(FORMAT, size=512), SilentProgress())
    write_bins(feed, kit, tmp_path / "bins", SilentProgress())
    assert [path.stat().st_size for path in (tmp_path / "bins").iterdir()] == [3_145_728]


def test_files_just_written_pass_the_check(folder, feed, kit):
    check_bins(feed, kit, folder)


def test_writing_again_mends_what_is_missing_or_wrong_and_leaves_the_rest(folder, feed, kit):
    missing, wrong, part, *_ = sorted(folder.iterdir())
    missing.unlink()
    wrong.write_bytes(bytes(wrong.stat().st_size))
    part.rename(part.with_name(part.name + ".part"))  # as a killed run leaves it
    assert write_bins(feed, kit, folder, SilentProgress()) == 3
    check_bins(feed, kit, folder)
    assert write_bins(feed, kit, folder, SilentProgress()) == 0


def test_a_folder_with_other_files_is_not_written_to(feed, kit, tmp_path):
    for number in range(6):
        (tmp_path / f"note{number}.txt").write_text("mine")
    with pytest.raises(WrongDataError, match=r"holds other files: 6: note0\.txt, .*note4\.txt, \.\.\."):
        write_bins(feed, kit, tmp_path, SilentProgress())
    assert not list(tmp_path.glob("*.bin"))


def test_a_file_is_not_a_folder(feed, kit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is not a folder"):
        write_bins(feed, kit, tmp_path / "file", SilentProgress())


def test_a_disk_too_small_is_refused_before_anything_is_written(feed, kit, tmp_path, monkeypatch):
    needed = COUNT * 3 * 128 * 128 * 4
    monkeypatch.setattr(support.feed.shutil, "disk_usage", lambda _: type("Usage", (), {"free": needed - 1}))
    with pytest.raises(NoSpaceError, match="required: 1 MiB for 7 input files"):
        write_bins(feed, kit, tmp_path / "bins", SilentProgress())
    assert list((tmp_path / "bins").iterdir()) == []


def test_images_whose_files_would_share_a_name_are_refused(feed, kit, tmp_path):
    first, second, *rest = kit.images
    images = (first, replace(second, file_name=f"other/{Path(first.file_name).stem}.png"), *rest)
    with pytest.raises(WrongDataError, match=rf"several images would be written as {Path(first.file_name).stem}\.bin"):
        write_bins(feed, replace(kit, images=images), tmp_path, SilentProgress())


def test_a_feed_of_other_images_is_refused(feed, kit, tmp_path):
    with pytest.raises(
        WrongDataError, match=rf"2 images of the feed are not in the data set: ids \[{kit.images[5].id},"
    ):
        write_bins(feed, kit.limited(5), tmp_path, SilentProgress())


def test_a_missing_folder_is_no_data(feed, kit, tmp_path):
    with pytest.raises(NoDataError, match="not a folder\n  required: a folder with 7 input files"):
        check_bins(feed, kit, tmp_path / "bins")


def test_the_check_names_missing_files(folder, feed, kit):
    for path in sorted(folder.iterdir())[:6]:
        path.unlink()
    with pytest.raises(WrongDataError, match=rf"lacks files: 6: {Path(kit.images[0].file_name).stem}\.bin, .*, \.\.\."):
        check_bins(feed, kit, folder)


def test_the_check_names_surplus_files(folder, feed, kit):
    (folder / "000000999999.bin").write_bytes(b"")
    with pytest.raises(WrongDataError, match=r"holds other files: 1: 000000999999\.bin\n"):
        check_bins(feed, kit, folder)


def test_the_check_names_files_of_the_wrong_size(folder, feed, kit):
    path = min(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(WrongDataError, match=rf"holds files that do not have 196608 bytes: 1: {path.name}"):
        check_bins(feed, kit, folder)


def test_the_check_finds_single_bits_and_names_the_worst_first(folder, feed, kit):
    one, many, *_ = sorted(folder.iterdir())
    for path, places in ((one, [0]), (many, [0, 4, 8])):
        content = bytearray(path.read_bytes())
        for place in places:
            content[place] ^= 1
        path.write_bytes(content)
    worst_first = rf"2: {many.name} \(3 values\), {one.name} \(1 values\)"
    with pytest.raises(WrongDataError, match=f"differ from the feed: {worst_first}"):
        check_bins(feed, kit, folder)


def test_the_check_finds_two_files_exchanged(folder, feed, kit):
    one, other, *_ = sorted(folder.iterdir())
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(WrongDataError, match="differ from the feed: 2"):
        check_bins(feed, kit, folder)
