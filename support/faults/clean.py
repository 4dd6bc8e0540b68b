"""Runs without a fault, in which nothing may turn red: other images, orders, batch sizes and devices each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from support.faults.bench import BATCH, IMAGES, OTHER_BATCH, SEED, Bench
from support.faults.record import CleanRun
from support.faults.scoring import at_published_pace
from support.measuring import verdict_of
from support.results import Results
from support.run import Run
from support.verdict import ClauseVerdict

__all__ = ["CONTROLS", "CleanPlan", "Control", "clean_plans"]

#: A clean run, and the verdicts in it that are not accepted.
Ran = tuple[CleanRun, tuple[ClauseVerdict, ...]]
SCOPES = frozenset({"gate", "throughput"})
#: Clauses about what lies behind the network.
BEHIND = ("coverage", "stage_tensors", "score_agreement", "class_size_guard", "batch_invariance", "timed_outputs")


@dataclass(frozen=True)
class CleanPlan:
    """
    A clean run of the whole gate on the CPU.

    Parameters
    ----------
    seed : int
        Decides which images of the kit, and in which order they fill the batches.
    images : int
        How many; every batch size above 1 has a tail.
    batch_sizes : tuple of int
        Of the run.
    turn : int
        Which run this is of those with the same images.
    compared : int
        Images that are run again at each batch size.
    """

    seed: int
    images: int
    batch_sizes: tuple[int, ...]
    turn: int = 0
    compared: int = 64

    @property
    def name(self) -> str:
        """Name of the run, for example ``seed1-bs1-bs8``."""
        sizes = "-".join(f"bs{size}" for size in self.batch_sizes) if len(self.batch_sizes) < 3 else "all"
        return f"seed{self.seed}-{sizes}" + (f"-{self.turn}" if self.turn else "")

    def ran(self, bench: Bench) -> Ran:
        """Judge every clause that the gate has."""
        start = time.perf_counter()
        world = bench.clean_world(self.seed, self.images)
        rules = world.spec.throughput.model_copy(update={"comparison_images": self.compared})
        spec = world.spec.model_copy(update={"batch_sizes": self.batch_sizes, "throughput": rules})
        results = Results(bench.run_over(world, spec=spec))
        required = spec.required(mode="build", chip="cpu", scopes=SCOPES)
        verdicts = [verdict_of(name, results, batch) for name, batch in required]
        return _summed_up(self.name, self.seed, self.images, self.batch_sizes, verdicts, start)


@dataclass(frozen=True)
class Control:
    """
    A clean run on one of the devices that faults are put into, so that what they show is theirs and not the device's.

    Parameters
    ----------
    name : str
        Of the run.
    batch : int
        Batch size of the clauses.
    clauses : tuple of str
        What is judged.
    start : callable
        Begins the run.
    """

    name: str
    batch: int
    clauses: tuple[str, ...]
    start: Callable[[Bench, ExitStack], Run]

    def ran(self, bench: Bench) -> Ran:
        """Judge the clauses."""
        start = time.perf_counter()
        with ExitStack() as stack:
            run = self.start(bench, stack)
            results = Results(run)
            verdicts = [verdict_of(name, results, self.batch) for name in self.clauses]
            return _summed_up(self.name, SEED, len(run.dataset.images), run.spec.batch_sizes, verdicts, start)


def _summed_up(
    name: str, seed: int, images: int, batch_sizes: tuple[int, ...], verdicts: Iterable[ClauseVerdict], start: float
) -> Ran:
    judged = tuple(verdicts)
    red = tuple(verdict for verdict in judged if verdict.word != "accepted")
    run = CleanRun(
        name=name,
        seed=seed,
        images=images,
        batch_sizes=batch_sizes,
        clauses=len(judged),
        red=tuple(f"{verdict.label} {verdict.reason or verdict.word}" for verdict in red),
        seconds=round(time.perf_counter() - start, 3),
    )
    return run, red


#: Clean runs on devices that replay kept heads, and on a simulated chip.
CONTROLS: tuple[Control, ...] = (
    Control("replayed", BATCH, BEHIND, lambda bench, stack: bench.replayed(stack)),
    Control("replayed-t4", BATCH, ("coverage", "throughput_same_chip"), at_published_pace),
    Control("simulated-310p3", OTHER_BATCH, ("om_contract", *BEHIND), lambda bench, _: bench.simulated("sim:310P3,v3")),
)


def clean_plans(*, full: bool) -> tuple[CleanPlan, ...]:
    """
    Plan the clean runs of the whole gate.

    Parameters
    ----------
    full : bool
        30 runs over the whole kit at six batch sizes, instead of 6 over half of it at two, with fewer images run again.

    Examples
    --------
    >>> [plan.name for plan in clean_plans(full=False)][:2]
    ['seed0-bs1-bs8', 'seed0-bs4-bs8']
    """
    if full:
        sizes = (1, 4, 8, 16, 32, 64)
        return tuple(CleanPlan(seed, 133, sizes, turn) for seed in range(6) for turn in range(5))
    worlds = {SEED: IMAGES, SEED + 1: IMAGES + 3}
    pairs = ((1, 8), (4, 8), (8, 16))
    return tuple(CleanPlan(seed, images, pair, compared=16) for seed, images in worlds.items() for pair in pairs)
