"""The bench on which faults are put in: runs over small worlds, with everything clean built once."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import support.devices
from support.artifacts import Artifact
from support.ascend.host import real_host
from support.backends.base import Backend
from support.capabilities import Capabilities, Chip, Gpu, probe
from support.faults.kept_heads import Alter, KeptHeads, ReplayBackend
from support.faults.worlds import KIT_SPEC, World, quoting, world
from support.onnx_files import load_onnx
from support.options import RunOptions
from support.progress import Progress
from support.results import Results
from support.run import Run
from support.simulator.host import simulated_host
from support.spec import AcceptanceSpec, load_spec

__all__ = ["BATCH", "IMAGES", "OTHER_BATCH", "SEED", "Bench", "replaced"]

#: Batch size at which most faults are looked for, and that of the stage ladder; and another one. 66 images leave a tail
#: of 2 in both.
BATCH, OTHER_BATCH = 8, 4
IMAGES, SEED = 66, 0
#: Images of the world for simulated devices, which compute in emulated half precision: enough for a tail of one.
FEW_IMAGES = 9
#: Id in the kit of an image whose squeeze-and-excite sums do not fit into half precision.
OVERFLOWS = 196588
REPLAYED_T4 = Gpu(index=0, name="Tesla T4", uuid="GPU-replayed", driver="", memory=15360, utilisation=0)


class Bench:
    """
    Runs over small worlds, to put faults in.

    Parameters
    ----------
    artifacts : Path
        Store of everything that is built from the clean kit. What a fault builds there has a key of its own, or goes
        to another store.
    folder : Path
        For worlds, corrupted files and passes.
    progress : Progress
        Told of everything that takes long.
    """

    def __init__(self, artifacts: Path, folder: Path, progress: Progress) -> None:
        self.artifacts, self.folder, self._progress = artifacts, folder, progress
        self._numbers = itertools.count()
        self._passing: list[Path] = []
        self._made: dict[str, Path] = {}
        self._clean_worlds: dict[tuple[int, int], World] = {}

    def new_folder(self, name: str, *, keep: bool = False) -> Path:
        """Make a folder that nobody else uses; it goes with the next `tidy`, unless it is kept for other faults."""
        folder = self.folder / f"{name}-{next(self._numbers)}"
        folder.mkdir(parents=True)
        if not keep:
            self._passing.append(folder)
        return folder

    def tidy(self) -> None:
        """Remove what the last fault left: raw heads and inputs of a hundred faults would fill a disk."""
        while self._passing:
            shutil.rmtree(self._passing.pop())

    @cached_property
    def capabilities(self) -> Capabilities:
        """What this machine can do, and a GPU that only replays."""
        found = probe(timeout=60.0, host=real_host())
        return found.model_copy(update={"gpus": (REPLAYED_T4,), "gpu_problem": ""})

    def once(self, name: str, make: Callable[[], Path]) -> Path:
        """Give what faults of one kind start from; whoever changes it takes a copy."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    # --- worlds

    @cached_property
    def world(self) -> World:
        """The world of most faults: that of two clean runs, at other batch sizes."""
        clean = self.clean_world(SEED, IMAGES)
        return replace(clean, spec=clean.spec.model_copy(update={"batch_sizes": (OTHER_BATCH, BATCH)}))

    @cached_property
    def small_world(self) -> World:
        """The world of simulated devices."""
        return world(
            self.new_folder("small", keep=True),
            seed=SEED,
            images=FEW_IMAGES,
            batch_sizes=(OTHER_BATCH, BATCH),
            first=OVERFLOWS,
            golden_images=1,
            guard_minimum_objects=1,
        )

    def clean_world(self, seed: int, images: int) -> World:
        """Give a world of its own to the clean runs of a seed, with all batch sizes of the kit."""
        key = seed, images
        if key not in self._clean_worlds:
            sizes = load_spec(KIT_SPEC).batch_sizes
            made = world(
                self.new_folder("clean", keep=True), seed=seed, images=images, batch_sizes=sizes, ladder_batch=BATCH
            )
            self._clean_worlds[key] = self._quoted(made)
        return self._clean_worlds[key]

    def _quoted(self, plain: World) -> World:
        """Let the spec of a world quote what the checkpoint reaches there."""
        ap = self.run_over(plain).reference.facts.ap
        return replace(plain, spec=quoting(plain.spec, ap))

    @cached_property
    def kept(self) -> KeptHeads:
        """Raw heads of the clean candidate on every image of the world."""
        run = self.start()
        kept = KeptHeads(self.new_folder("heads", keep=True), run.spec.model)
        kept.record(run.feed, run.model(BATCH).path)
        return kept

    def build_clean(self) -> None:
        """Build and measure everything that is not the candidate's, before a fault could reach it."""
        _ = self.kept

    def build_ladder(self) -> None:
        """Measure AP of every stage before a fault could reach it."""
        results = Results(self.start())
        _ = results.ladder, results.edited_ladder

    # --- runs

    def start(self, *, spec: AcceptanceSpec | None = None, **options: Any) -> Run:
        """Begin a clean run over the world; other options and another spec are those of the fault."""
        return self.run_over(self.world, spec=spec, **options)

    def run_over(self, world: World, *, spec: AcceptanceSpec | None = None, **options: Any) -> Run:
        """Begin a run over a world."""
        asked = {"spec": KIT_SPEC, "coco_root": world.root, "artifacts": self.artifacts, **options}
        chosen = RunOptions(**asked)
        session = self.new_folder("session")
        if chosen.simulation is None:
            host, capabilities = real_host(), self.capabilities
        else:
            host = simulated_host(session / "host", chosen.simulation)
            capabilities = probe(timeout=60.0, host=host)
        return Run(chosen, spec or world.spec, capabilities, session, self._progress, host)

    def simulated(self, chip: str, *, spec: AcceptanceSpec | None = None, **options: Any) -> Run:
        """Begin a run on a simulated chip."""
        return self.run_over(self.small_world, spec=spec, chip=chip, **options)

    def replayed(
        self,
        stack: ExitStack,
        alter: Alter | None = None,
        pace: Callable[[int], float] | None = None,
        **options: Any,
    ) -> Run:
        """Begin a run on a device that gives kept heads, and perhaps alters them."""
        kept, run = self.kept, self.start(**options)

        def opened(model: Artifact, chip: Chip) -> Backend:
            batch = load_onnx(model.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value
            return ReplayBackend(kept, batch, alter, pace)

        replaced(stack, support.devices, "open_on_chip", opened)
        return run


def replaced(stack: ExitStack, owner: Any, name: str, value: object) -> Any:
    """Put something else in the place of an attribute, until the stack closes; give what was there."""
    original = getattr(owner, name)
    stack.enter_context(patch.object(owner, name, value))
    return original
