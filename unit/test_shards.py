import time
from dataclasses import replace

import numpy as np
import pytest

from support.detections import COLUMNS, Decoder
from support.engine import run_pass
from support.errors import DeviceLostError
from support.progress import SilentProgress
from support.shards import run_on_devices
from unit.test_engine import BATCH, SMALL, Device, Fed, plan

IMAGES = 21


def shared(count, *, images=IMAGES, golden=2, act=None):
    devices = [Device(act=act) for _ in range(count)]
    for device in devices:
        device.__enter__()
    asked = replace(plan(range(images)), golden=golden)
    return devices, run_on_devices(Fed(images), devices, Decoder(SMALL), SMALL, asked, SilentProgress())


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in (*COLUMNS, "images"))


@pytest.fixture(scope="module")
def alone():
    with Device() as device:
        return run_pass(Fed(IMAGES), device, Decoder(SMALL), SMALL, plan(range(IMAGES)), SilentProgress())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_detections_of_several_devices_are_those_of_one(alone, count):
    _, measured = shared(count)
    assert same(measured.detections, alone.detections)
    assert measured.padded_scored == 0
    assert measured.golden.batch == alone.golden.batch
    assert all(np.array_equal(a, b) for a, b in zip(measured.golden.classes, alone.golden.classes, strict=True))
    assert sum(call.images for call in measured.timing.calls) == IMAGES


def test_raw_heads_that_are_kept_may_come_from_several_devices(alone):
    _, measured = shared(2, images=2 * BATCH, golden=BATCH + 2)
    assert measured.golden.batch == BATCH + 2


def test_every_device_takes_whole_batches():
    devices, measured = shared(2)
    assert [call.images for call in measured.timing.calls].count(BATCH) == IMAGES // BATCH
    assert all(len(device.tensors) > 1 for device in devices)


def test_the_first_failure_stops_all_devices():
    calls = []

    def act(call):
        calls.append(call)
        if len(calls) > 6:
            raise DeviceLostError("gone")
        time.sleep(0.02)

    start = time.monotonic()
    with pytest.raises(DeviceLostError, match="gone"):
        shared(2, images=400, act=act)
    assert len(calls) < 30
    assert time.monotonic() - start < 20


def test_progress_counts_the_images_of_all_devices():
    seen = []

    class Counting:
        def step(self, title):
            from contextlib import nullcontext

            return nullcontext(lambda done, total: seen.append((done, total)))

    devices = [Device(act=lambda call: time.sleep(0.05)) for _ in range(2)]
    for device in devices:
        device.__enter__()
    run_on_devices(Fed(80), devices, Decoder(SMALL), SMALL, plan(range(80)), Counting())
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {80}
