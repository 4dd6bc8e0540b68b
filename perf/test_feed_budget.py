import os
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from perf.kit import SPEC, kit_run
from perf.rows import Row
from support.artifacts import ArtifactStore
from support.dataset import ImageRecord
from support.feed import build_feed
from support.inputs import InputFormat, letterbox, normalise, open_image
from support.progress import SilentProgress

pytestmark = pytest.mark.budget

FORMAT = InputFormat.from_model(SPEC.model)
WIDTH, HEIGHT = 640, 480
IMAGES, DISTINCT, WORKERS = 480, 24, 2
#: What fails, in images a second: a second decoding of every image.
FLOOR = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    kit = kit_run(tmp_path_factory.mktemp("run")).dataset
    for place in range(IMAGES):
        path = folder / f"{place}.jpg"
        if place < DISTINCT:
            open_image(kit.images[place].path).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=92)
        else:
            path.hardlink_to(folder / f"{place % DISTINCT}.jpg")
    records = [ImageRecord(n + 1, f"{n}.jpg", WIDTH, HEIGHT, folder / f"{n}.jpg") for n in range(IMAGES)]
    return replace(kit, root=folder, images=tuple(records))


def processor_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def test_a_cold_feed_is_built_at_its_rate(photos, tmp_path, capsys):
    stores = (ArtifactStore(tmp_path / f"store {number}", lock_seconds=60) for number in range(9))

    def rate():
        # Time of the processor, start of the processes included: the machine may be busy with something else.
        before, start = processor_seconds(), time.perf_counter()
        build_feed(next(stores), photos, FORMAT, SilentProgress(), workers=WORKERS)
        wall, busy = time.perf_counter() - start, processor_seconds() - before
        return WORKERS * IMAGES / busy, f"{busy / IMAGES * 1e3:.1f} ms of a core an image; {IMAGES / wall:.0f} a second"

    what = f"network inputs from {WIDTH} x {HEIGHT} JPEGs, cold, on {WORKERS} whole cores"
    Row(what, 150, "images/s", fails=FLOOR, at_least=True).judge(capsys, rate)


def test_a_feed_keeps_its_size_and_gives_the_bits_of_the_float_route(photos, tmp_path, capsys):
    few = replace(photos, images=photos.images[:DISTINCT])
    store = ArtifactStore(tmp_path / "store", lock_seconds=60)
    feed = build_feed(store, few, FORMAT, SilentProgress(), workers=1)
    size = sum(path.stat().st_size for path in feed.folder.rglob("*") if path.is_file()) / DISTINCT / 1e6
    Row("network inputs on disk", 0.8, "MB an image", fails=0.8).judge(capsys, lambda: (size, ""))
    for row, image in enumerate(few.images):
        direct = normalise(letterbox(open_image(image.path), FORMAT)[0][None], FORMAT)
        np.testing.assert_array_equal(feed.tensors([row]), direct, strict=True)
