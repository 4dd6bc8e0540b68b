import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
from PIL import Image

import support.feed
from support.artifacts import ArtifactStore
from support.dataset import open_dataset
from support.errors import NoSpaceError, ToolError, WrongDataError
from support.feed import CHUNK, Feed, build_feed
from support.inputs import InputFormat, letterbox, normalise, read_image
from support.progress import SilentProgress
from support.spec import load_spec

ROOT = Path(__file__).resolve().parents[1]
SPEC = load_spec("shapes_d0")
FORMAT = replace(InputFormat.from_model(SPEC.model), size=128)
RECORD = 128 * 128 * 3


@pytest.fixture(scope="module")
def kit():
    return open_dataset(ROOT / "fixtures/data/shapes", SPEC.dataset)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store", lock_seconds=60)


@pytest.fixture(scope="module")
def built(kit, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("feed"), lock_seconds=60)
    return build_feed(store, kit.limited(20), FORMAT, SilentProgress())


@pytest.fixture(scope="module")
def whole(kit, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("whole"), lock_seconds=60)
    return build_feed(store, kit, FORMAT, SilentProgress(), workers=1)


def same(one, other):
    return one.digest == other.digest and (one.pixels(range(len(one))) == other.pixels(range(len(other)))).all()


def partial_folder(store):
    [folder] = (store.root / "partial").iterdir()
    return folder / "feed"


class Watched(SilentProgress):
    """Calls a function once, when so many images are decoded."""

    def __init__(self, at, act):
        self.at, self.act, self.last = at, act, {}

    def step(self, title):
        @contextmanager
        def watched():
            def advance(done, total):
                self.last[title] = (done, total)
                if title == "decoding images" and done >= self.at:
                    act, self.act = self.act, lambda: None
                    act()

            yield advance

        return watched()


def interrupt():
    raise KeyboardInterrupt


def test_records_are_the_letterboxed_images_in_order_of_id(built, kit):
    images = kit.images[:20]
    assert built.image_ids.tolist() == [image.id for image in images]
    assert built.sizes.tolist() == [[image.width, image.height] for image in images]
    for index in (0, 7, 19):
        pixels, geometry = letterbox(read_image(images[index].path), FORMAT)
        np.testing.assert_array_equal(built.pixels([index])[0], pixels)
        assert built.scales[index] == geometry.scale


def test_arrays_have_the_types_that_were_agreed(built):
    assert (built.image_ids.dtype, built.scales.dtype) == (np.int64, np.float64)
    assert (built.sizes.dtype, built.checksums.dtype) == (np.int32, np.uint32)
    assert built.sizes.shape == (20, 2)


def test_tensors_are_the_normalised_records_in_the_order_asked(built):
    order = [3, 0, 3, 19]
    tensors = built.tensors(order)
    np.testing.assert_array_equal(tensors, normalise(built.pixels(order), FORMAT))
    assert tensors.flags.c_contiguous
    out = np.empty((4, 3, 128, 128), np.float32)
    assert built.tensors(np.array(order), out=out) is out
    np.testing.assert_array_equal(out, tensors)


@pytest.mark.parametrize(("shape", "dtype"), [((3, 3, 128, 128), np.float32), ((2, 3, 128, 128), np.float64)])
def test_an_unfit_output_array_is_refused(built, shape, dtype):
    with pytest.raises(ValueError, match="for 2 inputs of size 128"):
        built.tensors([0, 1], out=np.empty(shape, dtype))


@pytest.mark.parametrize("index", [-1, 20])
def test_a_position_outside_the_feed_is_refused(built, index):
    with pytest.raises(IndexError, match=f"record {index} of a feed of 20 images"):
        built.pixels([index])


def test_threads_may_read_at_the_same_time(built):
    whole = built.tensors(range(20))
    with ThreadPoolExecutor(4) as pool:
        for index, tensor in zip(range(20), pool.map(lambda i: built.tensors([i]), range(20)), strict=True):
            np.testing.assert_array_equal(tensor[0], whole[index])


def test_a_second_use_decodes_nothing(store, kit, monkeypatch):
    first = build_feed(store, kit.limited(5), FORMAT, SilentProgress())
    monkeypatch.setattr(support.feed, "open_image", None)
    assert same(build_feed(store, kit.limited(5), FORMAT, SilentProgress()), first)


def test_several_processes_write_the_same_feed_as_one(store, kit, built):
    progress = Watched(10**6, interrupt)
    assert same(build_feed(store, kit.limited(20), FORMAT, progress, workers=2), built)
    assert progress.last == {"hashing images": (20, 20), "decoding images": (20, 20)}


def test_formats_that_differ_in_std_alone_share_a_feed(store, kit):
    build_feed(store, kit.limited(2), FORMAT, SilentProgress())
    build_feed(store, kit.limited(2), replace(FORMAT, std=(0.5, 0.5, 0.5)), SilentProgress())
    assert len(list((store.root / "feed").iterdir())) == 1
    build_feed(store, kit.limited(2), replace(FORMAT, mean=(0.5, 0.5, 0.5)), SilentProgress())
    assert len(list((store.root / "feed").iterdir())) == 2


def test_the_digest_tells_feeds_apart(built, kit, store):
    assert build_feed(store, kit.limited(19), FORMAT, SilentProgress()).digest != built.digest
    for change in (
        {"checksums": built.checksums[::-1]},
        {"image_ids": built.image_ids + 1},
        {"sizes": built.sizes * 2},
    ):
        assert replace(built, **change).digest != built.digest


@pytest.fixture
def copied(kit, tmp_path):
    """A data set of three images that may be damaged."""
    images = []
    for image in kit.images[:3]:
        path = tmp_path / image.file_name
        path.write_bytes(image.path.read_bytes())
        images.append(replace(image, path=path))
    return replace(kit.limited(3), images=tuple(images))


def test_a_changed_image_is_decoded_anew_whatever_its_time_stamp(store, copied):
    first = build_feed(store, copied, FORMAT, SilentProgress())
    stamp = copied.images[0].path.stat()
    read = read_image(copied.images[0].path)[::-1]
    Image.fromarray(read).save(copied.images[0].path, quality=95)
    os.utime(copied.images[0].path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = build_feed(store, copied, FORMAT, SilentProgress())
    assert (first.checksums != second.checksums).tolist() == [True, False, False]


def test_a_damaged_image_stops_the_build_and_is_named(store, copied):
    path = copied.images[1].path
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WrongDataError, match=rf"{path.name} cannot be decoded"):
        build_feed(store, copied, FORMAT, SilentProgress())


def test_an_image_of_another_size_than_annotated_is_refused(store, copied):
    images = (replace(copied.images[0], width=641), *copied.images[1:])
    with pytest.raises(WrongDataError, match=r"has 640 x 480 pixels\n  required: 641 x 480, as the annotations say"):
        build_feed(store, replace(copied, images=images), FORMAT, SilentProgress())


def test_an_image_that_went_away_is_named(store, copied):
    copied.images[2].path.unlink()
    with pytest.raises(WrongDataError, match=rf"{copied.images[2].file_name} cannot be read: No such file"):
        build_feed(store, copied, FORMAT, SilentProgress())


def test_a_damaged_image_stops_all_processes_promptly(store, kit, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(kit.images[0].path.read_bytes()[:2000])
    images = (replace(kit.images[0], path=bad), *kit.images[1:])
    before = set(psutil.Process().children(recursive=True))
    progress = Watched(10**6, interrupt)
    with pytest.raises(WrongDataError, match=r"bad\.jpg cannot be decoded"):
        build_feed(store, replace(kit, images=images), FORMAT, progress, workers=2)
    assert progress.last.get("decoding images", (0, 0))[0] < len(images) - CHUNK
    assert workers_among(set(psutil.Process().children(recursive=True)) - before) == []


def workers_among(processes):
    # multiprocessing keeps one helper of its own for the life of the interpreter.
    return [process for process in processes if "resource_tracker" not in " ".join(process.cmdline())]


def test_a_process_that_dies_is_a_tool_error_and_leaves_what_is_done(store, kit):
    def kill_a_worker():
        workers_among(psutil.Process().children())[0].kill()

    with pytest.raises(ToolError, match="a process that decoded images died"):
        build_feed(store, kit, FORMAT, Watched(CHUNK, kill_a_worker), workers=2)
    assert (partial_folder(store) / "journal").stat().st_size > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_build_goes_on_where_it_stopped(store, kit, built, workers, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        build_feed(store, kit.limited(20), FORMAT, Watched(CHUNK, interrupt), workers=workers)
    decoded = []
    monkeypatch.setattr(
        support.feed, "open_image", lambda *args, real=support.feed.open_image: decoded.append(args) or real(*args)
    )
    assert same(build_feed(store, kit.limited(20), FORMAT, SilentProgress(), workers=1), built)
    assert len(decoded) in (0, 4) if workers == 2 else len(decoded) == 4


@pytest.mark.parametrize("garbage", ["[16, 1, 2", '[0, "x"]', "[[]]", "5", "[0]", "\x00\xff"])
def test_a_torn_journal_does_no_harm(store, kit, built, garbage):
    with pytest.raises(KeyboardInterrupt):
        build_feed(store, kit.limited(20), FORMAT, Watched(CHUNK, interrupt), workers=1)
    with (partial_folder(store) / "journal").open("a", encoding="latin-1") as journal:
        journal.write("\n" + garbage)
    assert same(build_feed(store, kit.limited(20), FORMAT, SilentProgress(), workers=1), built)


def test_a_record_damaged_between_two_builds_is_decoded_again(store, kit, built):
    with pytest.raises(KeyboardInterrupt):
        build_feed(store, kit.limited(20), FORMAT, Watched(CHUNK, interrupt), workers=1)
    with (partial_folder(store) / "pixels.u8").open("r+b") as file:
        file.seek(5 * RECORD)
        file.write(b"damage")
    assert same(build_feed(store, kit.limited(20), FORMAT, SilentProgress(), workers=1), built)


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from support.artifacts import ArtifactStore
from support.dataset import open_dataset
from support.feed import build_feed
from support.inputs import InputFormat
from support.progress import SilentProgress
from support.spec import load_spec

spec = load_spec("shapes_d0")
dataset = open_dataset(Path("fixtures/data/shapes"), spec.dataset)
store = ArtifactStore(Path(sys.argv[1]), lock_seconds=60)
feed = build_feed(store, dataset, replace(InputFormat.from_model(spec.model), size=128), SilentProgress(), workers=2)
print(feed.digest)
"""


def build_elsewhere(store):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, store.root], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def stop_while_decoding(store, process, signal_number):
    """Send the signal once the first chunk is done; return the processes that decoded."""
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in store.root.glob("partial/*/feed/journal")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal_number)
    return children


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_leaves_no_process_and_goes_on_where_it_stopped(store, kit, whole, signal_number):
    with build_elsewhere(store) as process:
        children = stop_while_decoding(store, process, signal_number)
    assert children
    assert psutil.wait_procs(children, timeout=20)[1] == []
    noted = (partial_folder(store) / "journal").read_text().strip().splitlines()
    assert 0 < len(noted) < len(kit.images) / CHUNK
    assert not (store.root / "feed").exists()
    resumed = build_feed(store, kit, FORMAT, SilentProgress(), workers=1)
    assert same(resumed, whole)
    assert {path.name for path in resumed.folder.iterdir()} == {"pixels.u8", "index.json"}


def test_two_processes_at_once_build_once(store, whole):
    with build_elsewhere(store) as one, build_elsewhere(store) as other:
        digests = {one.communicate(timeout=60)[0].strip(), other.communicate(timeout=60)[0].strip()}
    assert digests == {whole.digest}
    [entry] = (store.root / "feed").iterdir()
    assert json.loads((entry / "artifact.json").read_text())["facts"]["images_kept"] == 0


def test_an_image_that_changes_after_it_was_hashed_is_not_decoded(store, kit, tmp_path, monkeypatch):
    images = tuple(replace(image, path=Path(shutil.copy(image.path, tmp_path))) for image in kit.images[:2])
    changing = replace(kit.limited(2), images=images)

    def hashed(*arguments, real=support.feed._images_digest):
        shutil.copy(kit.images[2].path, images[1].path)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(support.feed, "_images_digest", hashed)
        with pytest.raises(WrongDataError, match="has changed since this run began"):
            build_feed(store, changing, FORMAT, SilentProgress())
    assert not (store.root / "feed").exists()
    shutil.copy(kit.images[1].path, images[1].path)
    untouched = build_feed(store, kit.limited(2), FORMAT, SilentProgress())
    assert build_feed(store, changing, FORMAT, SilentProgress()).digest == untouched.digest


@pytest.fixture
def damageable(store, kit):
    return build_feed(store, kit.limited(4), FORMAT, SilentProgress())


def test_a_damaged_record_is_found_when_it_is_read(damageable):
    with (damageable.folder / "pixels.u8").open("r+b") as file:
        file.seek(2 * RECORD + 77)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert len(damageable.pixels([0, 1, 3])) == 3
    for read in (damageable.pixels, damageable.tensors):
        with pytest.raises(WrongDataError, match=rf"record 2 \(image id {damageable.image_ids[2]}\)") as error:
            read([0, 2])
        assert "run again, which decodes the images anew" in error.value.remedy


def test_a_feed_with_a_damaged_record_is_built_again_by_the_next_run(store, kit, damageable):
    pixels = damageable.pixels(range(4))
    with (damageable.folder / "pixels.u8").open("r+b") as file:
        file.write(b"another beginning")
    with pytest.raises(WrongDataError):
        damageable.pixels([0])
    again = build_feed(store, kit.limited(4), FORMAT, SilentProgress())
    assert np.array_equal(again.pixels(range(4)), pixels)


def test_a_damaged_record_in_a_store_that_cannot_be_written_is_no_other_error(damageable, monkeypatch):
    os.truncate(damageable.folder / "pixels.u8", 10)
    monkeypatch.setattr(Path, "unlink", Mock(side_effect=PermissionError("read-only")))
    with pytest.raises(WrongDataError, match="does not have its checksum"):
        damageable.pixels([0])


def test_a_feed_cut_short_is_found_when_it_is_read(damageable):
    os.truncate(damageable.folder / "pixels.u8", 3 * RECORD + 10)
    with pytest.raises(WrongDataError, match=r"record 3 .* does not have its checksum"):
        damageable.pixels([3])


def test_a_feed_that_went_away_is_found_when_it_is_read(damageable):
    (damageable.folder / "pixels.u8").unlink()
    with pytest.raises(WrongDataError, match=r"pixels\.u8: cannot be read: No such file"):
        damageable.tensors([0])


def test_a_feed_cut_short_is_built_again(store, kit, damageable):
    os.truncate(damageable.folder / "pixels.u8", 10)
    again = build_feed(store, kit.limited(4), FORMAT, SilentProgress())
    assert again.digest == damageable.digest
    assert len(again.pixels(range(4))) == 4


def test_a_disk_too_small_is_refused_before_anything_is_written(store, kit, monkeypatch):
    usage = type("Usage", (), {"free": 20 * RECORD - 1})
    monkeypatch.setattr(support.feed.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpaceError, match=r"has 1 MiB free\n  required: 1 MiB for the feed of 20 images"):
        build_feed(store, kit.limited(20), FORMAT, SilentProgress())
    assert not (partial_folder(store) / "pixels.u8").exists()
    monkeypatch.setattr(usage, "free", 20 * RECORD)
    assert len(build_feed(store, kit.limited(20), FORMAT, SilentProgress())) == 20


def test_a_feed_opens_from_its_folder_alone(built):
    assert same(Feed.open(built.folder, FORMAT), built)
