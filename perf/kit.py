"""What the benchmarks run: the kit, its images as often as needed, and a device in this process."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support.backends.base import Backend, TensorInfo
from support.capabilities import probe
from support.engine import Plan
from support.feed import Feed
from support.heads import head_shapes
from support.options import RunOptions
from support.progress import SilentProgress
from support.run import Run
from support.simulator.host import simulated_host
from support.simulator.pace import Pace
from support.simulator.replay import Replay
from support.spec import load_spec

__all__ = ["Paced", "PacedHost", "RepeatedFeed", "kit_run", "plan_over", "repeated"]

CHECKOUT = Path(__file__).resolve().parents[1]
SPEC = load_spec("shapes_d0")


def kit_run(folder, chip="cpu", **options):
    """Return a run of the kit whose session lies in a folder; what it builds stays in the store of the checkout."""
    chosen = RunOptions(chip=chip, artifacts=CHECKOUT / "artifacts", **options)
    host = simulated_host(folder / "host", chosen.simulation) if chosen.simulation else None
    found = probe(timeout=SPEC.timeouts.probe, **({"host": host} if host else {}))
    return Run(chosen, SPEC, found, folder, SilentProgress(), host)


@dataclass(frozen=True, eq=False)
class RepeatedFeed(Feed):
    """The first images of another feed over and over, under ids of their own."""

    distinct: int

    def _read(self, file, index, record):
        super()._read(file, index % self.distinct, record)


def repeated(feed, images, distinct):
    """Give a feed of so many images, of which so many are distinct."""
    rows, ids = np.arange(images) % distinct, np.arange(1, images + 1)
    return RepeatedFeed(feed.folder, feed.fmt, ids, feed.sizes[rows], feed.checksums[rows], (), distinct)


def plan_over(images, title, golden=0):
    """Return a plan over all images without a warm-up."""
    return Plan(order=range(images), warm_up_calls=0, golden=golden, call_seconds=600, title=title, chip="")


class PacedHost:
    """A simulated NPU at chosen rates: heads it has once computed are replayed, time and copies are charged."""

    def __init__(self, folder):
        self.folder = folder / "host"
        self.run = kit_run(folder, "sim:310P3,v3,paced")

    def opened(self, batch, rate, copy_rate):
        """Return the kit's model of a batch size on the device, at images and bytes a second."""
        path = self.folder / "host.json"
        facts = json.loads(path.read_text()) | {"images_per_second": {str(batch): rate}, "copy_rate": copy_rate}
        path.write_text(json.dumps(facts))
        ascend = self.run.devices.ascend
        return ascend.backend(self.run.model(batch), ascend.npus[0])

    @property
    def replay(self):
        """Heads of the images seen so far."""
        (folder,) = (self.folder / "outputs").iterdir()
        return folder


class Paced(Backend):
    """
    The same device within this process: what the engine itself costs, without the runtime's process.

    Inputs and heads are moved for real, and a call ends no sooner than computing and copies take.
    """

    timer = "the charged time of computing"
    includes_copies = False

    def __init__(self, replay, model, batch, rate, copy_rate):
        self._shapes = head_shapes(model, batch)
        self._input = TensorInfo("x", (batch, 3, model.image_size, model.image_size), "float32")
        self._folder, self._pace = replay, Pace({batch: rate}, waits=True, copy_rate=copy_rate)

    def _open(self):
        self._replay = Replay(self._folder, [shape[1:] for shape in self._shapes])
        self._device = np.empty(self._input.shape, np.float32)
        self._sets = [[np.zeros(shape, np.float32) for shape in self._shapes] for _ in range(2)]
        self._calls = 0
        return self._input, tuple(TensorInfo(f"y{n}", shape, "float32") for n, shape in enumerate(self._shapes))

    def _run(self, tensor):
        start = time.perf_counter()
        self._device[:] = tensor
        heads, self._calls = self._sets[self._calls % 2], self._calls + 1
        for head, rows in zip(heads, self._replay.outputs(self._device, _refuse), strict=True):
            for slot, row in enumerate(rows):
                head[slot] = row
        self._milliseconds = self._pace.compute_ms(len(tensor))
        self._pace.wait(self._milliseconds, start, tensor.nbytes + sum(head.nbytes for head in heads))
        return {f"y{n}": head for n, head in enumerate(heads)}

    def _seconds(self, wall):
        return self._milliseconds / 1e3

    def _close(self):
        self._sets = []


def _refuse(tensor):
    raise AssertionError("heads of these images were not computed before")
