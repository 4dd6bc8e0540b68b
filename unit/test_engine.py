import signal
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from support.backends.base import Backend, TensorInfo
from support.detections import COLUMNS, Decoder, Detections
from support.engine import Plan, repeated_image, run_pass
from support.errors import ContractViolationError, SuiteTimeoutError, ToolError, WrongDataError
from support.heads import Heads, head_shapes
from support.progress import SilentProgress
from support.spec import load_spec

SMALL = load_spec("efficientdet_d0").model.model_copy(update={"image_size": 128, "classes": 3})
BATCH, IMAGES = 4, 10
CALLS = 3


# A feed of one grey level per image.
class Fed:
    def __init__(self, images=IMAGES, broken=None):
        self.image_ids = np.arange(images, dtype=np.int64) * 7 + 100
        self.scales = np.linspace(1, 3, images)
        self.sizes = np.stack([np.arange(images) + 200, np.arange(images) + 300], axis=1).astype(np.int32)
        self.levels = np.random.default_rng(0).normal(0, 1, images).astype(np.float32)
        self.broken = broken

    def __len__(self):
        return len(self.image_ids)

    def tensors(self, indices, *, out):
        if self.broken in indices:
            raise WrongDataError(f"record {self.broken} is damaged")
        out[:] = self.levels[np.asarray(indices)][:, None, None, None]
        return out


def heads_of():
    rng = np.random.default_rng(3)
    return [rng.normal(-3, 1, shape[1:]).astype(np.float32) for shape in head_shapes(SMALL, 1)]


# Heads that depend on the grey level of each image alone.
class Device(Backend):
    timer, includes_copies = "a test", False

    def __init__(self, batch=BATCH, act=None):
        self._batch, self._act = batch, act
        self.tensors, self.alive, self.most_alive = [], [], 0
        self.base = [head[None] for head in heads_of()]

    def _open(self):
        shapes = head_shapes(SMALL, self._batch)
        outputs = tuple(TensorInfo(f"out_{place}", shape, "float32") for place, shape in enumerate(shapes))
        return TensorInfo("x", (self._batch, 3, 128, 128), "float32"), outputs

    def _run(self, tensor):
        self.tensors.append(tensor[:, 0, 0, 0].copy())
        if self._act:
            self._act(len(self.tensors))
        found = [base + tensor[:, :1, :1, :1] for base in self.base]
        self.alive = [ref for ref in self.alive if ref() is not None] + [weakref.ref(found[0])]
        self.most_alive = max(self.most_alive, len(self.alive))
        return {f"out_{place}": head for place, head in enumerate(found)}

    def _close(self):
        pass


# Finds one thing in every image: the first number of its heads.
class Scores:
    def __init__(self, act=None):
        self._act, self.batches = act, []

    def decode(self, heads, image_ids, scales, sizes):
        self.batches.append(len(image_ids))
        if self._act:
            self._act(len(self.batches))
        count = len(image_ids)
        assert heads.batch == count == len(scales) == len(sizes)
        return Detections(
            images=image_ids,
            image_ids=image_ids,
            boxes=np.column_stack([scales, scales, sizes]).astype(np.float32),
            scores=heads.classes[0][:, 0, 0, 0].copy(),
            category_ids=np.ones(count, np.int32),
            anchors=np.zeros(count, np.int32),
        )


def plan(order=range(IMAGES), **changes):
    fields = {"warm_up_calls": 0, "golden": 2, "call_seconds": 30, "title": "a pass", "chip": "cpu"} | changes
    return Plan(order=order, **fields)


def passed(feed=None, device=None, decoder=None, **changes):
    device = device or Device()
    with device:
        return run_pass(feed or Fed(), device, decoder or Scores(), SMALL, plan(**changes), SilentProgress())


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 4, 16])
def test_a_pass_finds_what_a_serial_loop_finds(batch):
    feed, decoder = Fed(), Decoder(SMALL)
    found = passed(feed, Device(batch), decoder).detections
    singly = []
    for row, level in enumerate(feed.levels):
        heads = [head[None] + level for head in heads_of()]
        alone = Heads(tuple(heads[:5]), tuple(heads[5:]))
        where = slice(row, row + 1)
        singly.append(decoder.decode(alone, feed.image_ids[where], feed.scales[where], feed.sizes[where]))
    serial = Detections.concatenate(singly)
    assert len(found.scores) > IMAGES
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(serial, name), strict=True)


@pytest.mark.parametrize("order", [range(IMAGES), [9, 3, 4, 0, 8, 1], list(range(IMAGES))[::-1], [5], (2, 1, 0, 7, 6)])
def test_images_are_processed_in_the_order_of_the_plan(order):
    feed = Fed()
    found = passed(feed, order=order)
    rows = np.asarray(order)
    np.testing.assert_array_equal(found.detections.images, feed.image_ids[rows])
    np.testing.assert_allclose(found.detections.scores, heads_of()[0][0, 0, 0] + feed.levels[rows], rtol=1e-6)
    np.testing.assert_array_equal(found.detections.boxes[:, 2:], feed.sizes[rows])
    assert sum(call.images for call in found.timing.calls) == len(rows)


def test_a_tail_is_filled_with_its_last_image_and_not_scored():
    feed, device, decoder = Fed(), Device(), Scores()
    found = passed(feed, device, decoder)
    np.testing.assert_array_equal(device.tensors[-1], feed.levels[[8, 9, 9, 9]])
    assert decoder.batches == [4, 4, 2]
    assert [call.images for call in found.timing.calls] == [4, 4, 2]
    assert len(found.detections.images) == IMAGES
    assert found.padded_scored == 0


def test_images_that_a_broken_decoder_adds_are_counted():
    class Doubling(Scores):
        def decode(self, *batch):
            return Detections.concatenate([super().decode(*batch)] * 2)

    assert passed(decoder=Doubling()).padded_scored == IMAGES


@pytest.mark.parametrize("golden", [1, 2, 4, 5, 50])
def test_raw_heads_of_the_leading_images_are_kept(golden):
    feed = Fed()
    found = passed(feed, golden=golden, order=range(IMAGES)[::-1]).golden
    assert found.batch == min(golden, IMAGES)
    expected = heads_of()[0][0, 0, 0] + feed.levels[::-1][: found.batch]
    np.testing.assert_allclose(found.classes[0][:, 0, 0, 0], expected, rtol=1e-6)
    assert [head.shape for head in (*found.classes, *found.boxes)] == [*head_shapes(SMALL, found.batch)]


def test_a_pass_over_no_image_is_refused():
    with pytest.raises(ValueError, match="a pass over no image measures nothing"):
        passed(order=[])


@pytest.mark.parametrize(("batch", "rows"), [(1, 2), (4, 4)])
@pytest.mark.parametrize("calls", [2, 5])
def test_one_image_fills_every_slot_of_every_call(batch, rows, calls):
    feed = Fed()
    with Device(batch) as device:
        heads = repeated_image(feed, device, SMALL, row=6, calls=calls)
    assert heads.batch == rows
    assert [level.tolist() for level in device.tensors] == [[feed.levels[6]] * batch] * calls
    assert all((head == head[:1]).all() for head in (*heads.classes, *heads.boxes))


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm_up", [0, 1, 3])
def test_warm_up_calls_are_kept_apart_and_use_the_first_batch(warm_up):
    feed, device = Fed(), Device(act=lambda call: time.sleep(0.05 if call <= warm_up else 0))
    timing = passed(feed, device, warm_up_calls=warm_up).timing
    assert (len(timing.warm_up), len(timing.calls)) == (warm_up, CALLS)
    assert all(seconds >= 0.05 for seconds in timing.warm_up)
    for tensor in device.tensors[: warm_up + 1]:
        np.testing.assert_array_equal(tensor, feed.levels[:BATCH])
    assert (timing.chip, timing.batch, timing.timer, timing.includes_copies) == ("cpu", BATCH, "a test", False)


def test_samples_are_of_the_device_alone():
    slow = Scores(act=lambda batch: time.sleep(0.2))
    # Of three calls two would wait for the decoder; a single one may be slow for other reasons.
    assert sorted(call.seconds for call in passed(decoder=slow).timing.calls)[1] < 0.15


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", ["device", "decoder"])
def test_at_most_two_batches_of_raw_heads_are_alive(slow):
    nap = {slow: lambda _: time.sleep(0.02)}
    device = Device(batch=1, act=nap.get("device"))
    passed(device=device, decoder=Scores(nap.get("decoder")))
    assert len(device.tensors) == IMAGES
    # A fast decoder lets go of a batch before the device gives the next.
    assert device.most_alive <= 2
    assert slow == "device" or device.most_alive == 2


def test_an_input_is_not_overwritten_while_the_device_reads_it():
    feed, seen = Fed(images=24), []

    class Looking(Device):
        def _run(self, tensor):
            before = tensor.copy()
            time.sleep(0.01)
            seen.append((before == tensor).all())
            return super()._run(tensor)

    passed(feed, Looking(), order=range(24))
    assert seen == [True] * 6


# -- errors ------------------------------------------------------------------------------------------------------------

MANY = 40


def fail(error, at):
    def act(call):
        if call == at:
            raise error

    return act


@pytest.mark.parametrize("at", [1, 3, MANY])
def test_an_error_of_the_device_ends_the_pass(at):
    device = Device(batch=1, act=fail(ToolError("the device is gone"), at))
    with pytest.raises(ToolError, match="the device is gone"):
        passed(Fed(MANY), device, order=range(MANY))
    assert len(device.tensors) == at


@pytest.mark.parametrize("at", [0, 3, MANY - 1])
def test_an_error_while_reading_ends_the_pass_before_the_device_sees_it(at):
    device = Device(batch=1)
    with pytest.raises(WrongDataError, match=f"record {at} is damaged"):
        passed(Fed(MANY, broken=at), device, order=range(MANY))
    assert len(device.tensors) == at


@pytest.mark.parametrize("at", [1, 3, MANY])
def test_an_error_while_decoding_ends_the_pass_at_the_next_call(at):
    device = Device(batch=1)
    with pytest.raises(ContractViolationError, match="no heads"):
        passed(Fed(MANY), device, Scores(fail(ContractViolationError("no heads"), at)), order=range(MANY))
    assert len(device.tensors) == min(at + 1, MANY)


def test_heads_that_are_not_finite_end_the_pass():
    feed = Fed()
    feed.levels[6] = np.nan
    with pytest.raises(ContractViolationError, match=r"image slot 2: .* NaN"):
        passed(feed, decoder=Decoder(SMALL))


def test_outputs_that_are_no_heads_end_the_pass():
    with (
        pytest.raises(ContractViolationError, match="the model's outputs are not the heads of the network"),
        Device() as d,
    ):
        run_pass(Fed(), d, Scores(), SMALL.model_copy(update={"classes": 5}), plan(), SilentProgress())


def test_a_warm_up_goes_on_until_it_is_steady():
    asked = []
    timing = passed(warm_up_calls=2, steady=lambda seconds: asked.append(list(seconds)) or len(seconds) == 5).timing
    assert [len(seconds) for seconds in asked] == [2, 3, 4, 5]
    assert timing.warm_up == tuple(asked[-1])
    assert len(timing.calls) == CALLS


def test_a_pass_tells_its_time_on_the_wall_from_the_first_timed_call_to_the_last_detection():
    device = Device(act=lambda call: time.sleep(0.2 if call == 1 else 0.02))
    start = time.perf_counter()
    timing = passed(device=device, warm_up_calls=1).timing
    assert sum(call.seconds for call in timing.calls) < timing.pass_seconds < time.perf_counter() - start - 0.2


def test_copies_are_kept_with_their_call_where_the_runtime_tells_them():
    class Telling(Device):
        @property
        def copy_seconds(self):
            return [place / 100 for place in range(len(self.samples))]

    assert [call.copies for call in passed(device=Telling(), warm_up_calls=1).timing.calls] == [0.01, 0.02, 0.03]
    assert {call.copies for call in passed().timing.calls} == {None}


@pytest.mark.parametrize(("warm_up", "step"), [(0, "a pass, call 2 of 3"), (3, "a pass, warm-up")])
def test_a_call_that_takes_too_long_is_interrupted(warm_up, step):
    device = Device(act=lambda call: time.sleep(10 if call == 2 else 0))
    start = time.monotonic()
    with pytest.raises(SuiteTimeoutError, match=rf"{step} took longer than 0\.5 s"):
        passed(device=device, warm_up_calls=warm_up, call_seconds=0.5)
    assert time.monotonic() - start < 5


def test_progress_ends_at_the_number_of_images():
    told = []

    class Told:
        def __enter__(self):
            return lambda done, total: told.append((done, total))

        def __exit__(self, *_):
            told.append("end")

    progress = SimpleNamespace(step=lambda title: (told.append(title), Told())[1])
    with Device() as device:
        run_pass(Fed(), device, Scores(), SMALL, plan(), progress)
    assert told == ["a pass", (4, 10), (8, 10), (10, 10), "end"]


# -- the first cause ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["device", "reader"])
def test_what_failed_first_is_the_error_of_the_pass(second):
    failed = threading.Event()

    def decode(batch):
        failed.set()
        raise ContractViolationError("no heads")

    def afterwards(*_):
        if failed.wait(10 if len(device.tensors) > 1 else 0):
            raise ToolError("a consequence")

    feed, device = Fed(MANY), Device(batch=1, act=afterwards if second == "device" else None)
    if second == "reader":
        read = feed.tensors

        def late(indices, *, out):
            if indices[0] == 3:
                failed.wait(10)
                raise ToolError("a consequence")
            return read(indices, out=out)

        feed.tensors = late
    with pytest.raises(ContractViolationError, match="no heads"):
        passed(feed, device, Scores(decode), order=range(MANY))
    assert len(device.tensors) <= 4


def test_an_error_of_the_device_is_not_hidden_by_what_it_causes():
    with pytest.raises(ToolError, match="the device is gone"):
        passed(
            Fed(MANY),
            Device(batch=1, act=fail(ToolError("the device is gone"), 4)),
            Scores(lambda batch: time.sleep(0.1 if batch == 3 else 0)),
            order=range(MANY),
        )


def test_ctrl_c_ends_the_pass_at_once_whatever_else_fails():
    def interrupt(call):
        if call == 5:
            signal.raise_signal(signal.SIGINT)
            time.sleep(10)

    device, start = Device(batch=1, act=interrupt), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        passed(Fed(MANY), device, Scores(fail(ContractViolationError("no heads"), 4)), order=range(MANY))
    assert len(device.tensors) == 5
    assert time.monotonic() - start < 5


def test_a_slow_decoder_holds_the_device_back():
    decoding = Scores(act=lambda batch: time.sleep(0.03))
    ahead = []
    device = Device(batch=1, act=lambda call: ahead.append(call - len(decoding.batches)))
    passed(device=device, decoder=decoding)
    # The call itself, and the batch that waits for the decoder.
    assert max(ahead) <= 2


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "loaded"])
def test_detections_are_the_same_however_late_anybody_is(busy):
    feed, decoder = Fed(30), Decoder(SMALL)
    expected = passed(feed, Device(batch=3), decoder, order=range(30)).detections
    rng, over = np.random.default_rng(7), threading.Event()

    def nap(_):
        time.sleep(rng.uniform(0, 0.01))

    class Late:
        def decode(self, *batch):
            nap(None)
            return decoder.decode(*batch)

    def spin():
        while not over.is_set():
            sum(range(1000))

    load = [threading.Thread(target=spin) for _ in range(2 if busy else 0)]
    for thread in load:
        thread.start()
    try:
        for _ in range(1 if busy else 3):
            found = passed(feed, Device(batch=3, act=nap), Late(), order=range(30)).detections
            for name in COLUMNS:
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)
    finally:
        over.set()
        for thread in load:
            thread.join()


def test_batch_sizes_share_a_feed_and_find_the_same():
    feed, decoder = Fed(70), Decoder(SMALL)
    found = [passed(feed, Device(batch), decoder, order=range(70)).detections for batch in (1, 4, 8, 16, 32, 64)]
    for other in found[1:]:
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(other, name), getattr(found[0], name), strict=True)
