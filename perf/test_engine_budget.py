import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import psutil
import pytest

from perf.kit import SPEC, Paced, PacedHost, kit_run, plan_over, repeated
from perf.rows import Row
from support.backends.onnx_runtime import OnnxCpuBackend
from support.detections import COLUMNS, Decoder, Detections
from support.engine import run_pass
from support.heads import Heads, pair_heads
from support.passes import write_pass
from support.progress import SilentProgress
from support.simulator.replay import Replay

pytestmark = [pytest.mark.budget, pytest.mark.needs_torch]

MODEL = SPEC.model
DISTINCT = 64
#: Bytes of the input and of the heads of one image.
IMAGE_BYTES = 4 * (3 * 512 * 512 + (810 + 36) * sum(side**2 for side in (64, 32, 16, 8, 4)))
#: Rates of a 310P3: batch, images a second, images of a pass, and what a pass may take of the device's own time.
PACES = [(16, 145.0, 480, 1.05), (4, 260.0, 600, 1.10)]
#: Bytes a second: PCIe 3.0 with four lanes, and with sixteen.
COPIES = [3e9, 12e9]
CORES = 2
#: What fails, whoever else uses the machine: processor time of all processes, moving the heads for the device included,
#: as a part of what two cores have while the device works. A copy of all heads more costs 0.2 to 0.5 of that.
CEILING = 3.0
CPU_BATCH, CPU_CALLS = 4, 16


def engine(feed, backend, images, golden=0):
    found = run_pass(feed, backend, Decoder(MODEL), MODEL, plan_over(images, "a pass", golden), SilentProgress())
    assert len(found.detections.images) == images
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


# -- on the CPU --------------------------------------------------------------------------------------------------------


def test_the_engine_on_the_cpu_keeps_up_with_the_bare_runtime(folder, capsys):
    run = kit_run(folder / "cpu")
    feed, path, images = run.feed, run.deployed_onnx(CPU_BATCH).path, CPU_BATCH * CPU_CALLS
    inputs = [feed.tensors(range(first, first + CPU_BATCH)) for first in range(0, images, CPU_BATCH)]
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    session.run(None, {name: inputs[0]})

    with OnnxCpuBackend(path) as backend:
        engine(feed, backend, CPU_BATCH)
        other = processor_seconds_of(feed, backend) * CPU_BATCH

        def ratio():
            start = time.perf_counter()
            for tensor in inputs:
                session.run(None, {name: tensor})
            between = time.perf_counter()
            engine(feed, backend, images)
            theirs, ours = between - start, time.perf_counter() - between
            least = beside_a_busy_thread(lambda tensor: session.run(None, {name: tensor}), inputs, other)
            return theirs / ours, (
                f"bare {images / theirs:.1f} images/s, engine {images / ours:.1f}; bare beside a thread only busy "
                f"for as long as reading and decoding take: {theirs / least:.3f}"
            )

        what = f"engine on the CPU, batch {CPU_BATCH}, against bare session.run"
        Row(what, 0.93, "of its throughput", fails=0.6, at_least=True).judge(capsys, ratio)


def processor_seconds_of(feed, backend):
    """Seconds of a core that reading and decoding an image take."""
    decoder, rows = Decoder(MODEL), range(CPU_BATCH)
    heads = pair_heads(backend.infer(feed.tensors(rows)), MODEL, CPU_BATCH)
    start = time.thread_time()
    feed.tensors(rows)
    decoder.decode(heads, feed.image_ids[:CPU_BATCH], feed.scales[:CPU_BATCH], feed.sizes[:CPU_BATCH])
    return (time.thread_time() - start) / CPU_BATCH


def beside_a_busy_thread(run, inputs, seconds):
    """Seconds of all calls, if a core is taken away for `seconds` in each but the first."""

    def busy():
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    start = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        for tensor in inputs:
            run(tensor)
            pool.submit(busy)
    return time.perf_counter() - start


# -- on a paced device -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(folder):
    host = PacedHost(folder)
    # Every image is computed once, at the speed of this machine; from here on the device replays its heads.
    with host.opened(4, 1e9, 1e12) as backend:
        engine(host.run.feed, backend, DISTINCT)
    return host


# Of one synchronous session that does nothing else.
def floor(backend, calls, copy_rate):
    return sum(backend.samples[-calls:]) + calls * backend.batch * IMAGE_BYTES / copy_rate


def processor_seconds():
    with_children = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in with_children)


def measured(feed, backend, images, copy_rate, shares, pass_=None):
    before, start = processor_seconds(), time.perf_counter()
    pass_() if pass_ else engine(feed, backend, images)
    wall, busy = time.perf_counter() - start, processor_seconds() - before
    least = floor(backend, -(-images // backend.batch), copy_rate)
    shares.append(busy / (CORES * least))
    return wall / least, f"{images / wall:.0f} images/s, {shares[-1]:.0%} of {CORES} cores for the time of the device"


@pytest.mark.parametrize("copy_rate", COPIES, ids=lambda rate: f"{rate / 1e9:.0f}GBs")
@pytest.mark.parametrize(("batch", "rate", "images", "budget"), PACES, ids=["batch16", "batch4"])
@pytest.mark.parametrize("route", [pytest.param("worker", marks=pytest.mark.nightly), "in-process"])
def test_a_pass_takes_little_more_than_the_device(host, capsys, route, batch, rate, images, budget, copy_rate):
    feed = repeated(host.run.feed, images, DISTINCT)
    device = host.opened if route == "worker" else partial(Paced, host.replay, MODEL)
    what = f"engine on a paced device ({route}), batch {batch} at {rate:g} images/s, copies {copy_rate / 1e9:g} GB/s"
    shares = []
    with device(batch, rate, copy_rate) as backend:
        engine(repeated(host.run.feed, DISTINCT, DISTINCT), backend, DISTINCT)
        bare = alone_on_the_device(backend, feed, copy_rate)

        def share():
            figure, detail = measured(feed, backend, images, copy_rate, shares)
            return figure, f"{detail}; calls of this device and nothing else: {bare:.2f}"

        Row(what, budget, "of compute and copies", fails=None).judge(capsys, share)
    assert min(shares) <= CEILING


def alone_on_the_device(backend, feed, copy_rate, calls=20):
    """What a device that moves every byte for real takes on this machine, as a part of what it charges."""
    places = backend.places()
    for place, tensor in enumerate(places):
        tensor[:] = feed.tensors(range(place * backend.batch, (place + 1) * backend.batch))
    start = time.perf_counter()
    for call in range(calls):
        backend.infer(places[call % 2])
    return (time.perf_counter() - start) / floor(backend, calls, copy_rate)


def test_streaming_finds_what_a_serial_loop_finds(host):
    images = 2 * DISTINCT + 5
    feed, decoder = repeated(host.run.feed, images, DISTINCT), Decoder(MODEL)
    with Paced(host.replay, MODEL, 16, 1e9, 1e12) as backend:
        within = engine(feed, backend, images).detections
        replay = Replay(host.replay, [info.shape[1:] for info in backend.outputs])
    with host.opened(16, 1e9, 1e12) as backend:
        through_the_worker = engine(feed, backend, images).detections
    serial = Detections.concatenate([alone(feed, decoder, replay, row) for row in range(images)])
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(within, name), getattr(serial, name), strict=True)
        np.testing.assert_array_equal(getattr(through_the_worker, name), getattr(serial, name), strict=True)


def alone(feed, decoder, replay, row):
    found = [np.stack(rows) for rows in replay.outputs(feed.tensors([row]), lambda tensor: pytest.fail("not computed"))]
    where = slice(row, row + 1)
    heads = Heads(tuple(found[:5]), tuple(found[5:]))
    return decoder.decode(heads, feed.image_ids[where], feed.scales[where], feed.sizes[where])


# -- memory and disk ---------------------------------------------------------------------------------------------------

RAW_GB = (IMAGE_BYTES - 4 * 3 * 512 * 512) / 1e9


def proportional(process):
    return process.memory_full_info().pss


class Resident:
    """
    The most memory that this process and the runtime's had at a time, in bytes, what they share counted once.

    What the runtime's process shares with the simulated device counts half: it stands for the memory of both.
    """

    def __init__(self, worker_pid):
        self._processes = [psutil.Process(), *([psutil.Process(worker_pid)] if worker_pid else [])]
        self._over, self.peak = threading.Event(), 0

    def __enter__(self):
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self):
        while not self._over.wait(0.05):
            self.peak = max(self.peak, sum(map(proportional, self._processes)))

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


@pytest.mark.parametrize("batch", [1, 16, 64])
def test_memory_is_bounded_at_every_batch_size(host, capsys, batch):
    # What the session holds already, packages of other tests among it, is not the engine's.
    before = proportional(psutil.Process())

    def share():
        with host.opened(batch, 145.0, 3e9) as backend, Resident(backend.worker_pid) as resident:
            engine(repeated(host.run.feed, 4 * batch, DISTINCT), backend, 4 * batch)
        most = 2 * batch * RAW_GB + 1
        used = (resident.peak - before) / 1e9
        return used / most, f"{used:.2f} GB of {most:.2f}, beside {before / 1e9:.2f} before the pass"

    Row(f"memory of a pass, batch {batch}", 1.0, "of two raw batches and 1 GB", fails=1.25).judge(capsys, share)


@pytest.mark.nightly
@pytest.mark.parametrize("route", ["worker", "in-process"])
def test_a_pass_over_5000_images(host, capsys, tmp_path, route):
    images, batch, rate, copy_rate = 5000, 16, 145.0, 12e9
    feed, shares, found = repeated(host.run.feed, images, DISTINCT), [], []
    device = host.opened if route == "worker" else partial(Paced, host.replay, MODEL)
    with device(batch, rate, copy_rate) as backend, Resident(getattr(backend, "worker_pid", None)) as resident:

        def pass_():
            found[:] = [engine(feed, backend, images, golden=SPEC.accuracy.golden_images)]
            return found[0]

        what = f"a pass over {images} images ({route}) at {rate:g} images/s, batch {batch}"
        row = Row(what, 1.05, "of compute and copies", fails=None)
        row.judge(capsys, lambda: measured(feed, backend, images, copy_rate, shares, pass_))
    write_pass(tmp_path / "pass", found[0])
    written = sum(path.stat().st_size for path in (tmp_path / "pass").iterdir())
    detail = f"{written / 1e6:.1f} MB written, at most {resident.peak / 1e9:.2f} GB resident"
    row = Row(f"disk of a pass over {images} images ({route})", 20, "kB an image", fails=20)
    row.judge(capsys, lambda: (written / images / 1e3, detail))
    assert min(shares) <= CEILING
