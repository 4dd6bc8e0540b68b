"""The guide's own route: inputs as files, ``ais_infer`` or ``ais_bench``, raw heads as files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from support.ascend.acl_errors import explain
from support.ascend.bench_cli import BenchCli, bench_arguments
from support.ascend.bench_summary import Summary, parse_output, read_summary
from support.ascend.host import AscendHost
from support.ascend.processes import run_tool
from support.detections import Decoder, Detections
from support.engine import Pass, Plan, joined_heads
from support.errors import ToolError
from support.feed import require_space
from support.heads import Heads, head_shapes
from support.progress import Progress
from support.result_files import TIMER, ResultFolder
from support.spec import Model
from support.timing import CallSample, PassTiming

if TYPE_CHECKING:
    from support.feed import Feed

__all__ = ["FileRoute", "file_route_pass"]

RESULTS = "results"
#: Relative difference between the mean that is printed and that of the list; they come from the same numbers.
PRINTED_TOLERANCE = 1e-3
GROUP = 4


class FileRoute:
    """
    How a model is run over files.

    Parameters
    ----------
    host : AscendHost
        Environment of the tool.
    cli : BenchCli
        The tool.
    om : Path
        Compiled model.
    device_id : int
        Device id as aclruntime counts.
    batch : int
        Batch size of the model.
    timeout : float
        Seconds for one chunk of images.
    """

    def __init__(
        self, host: AscendHost, cli: BenchCli, om: Path, *, device_id: int, batch: int, timeout: float
    ) -> None:
        self.batch = batch
        self._host, self._cli, self._om, self._device_id, self._timeout = host, cli, om, device_id, timeout

    def run(self, inputs: Path, output: Path) -> Summary:
        """
        Run the model over a folder of inputs into an empty folder.

        Raises
        ------
        SuiteError
            What the tool's output means, if it did not end with 0.
        ToolError
            If it ended with 0 without a summary, or printed another throughput than it recorded.
        """
        arguments = bench_arguments(
            self._cli,
            om=self._om.resolve(),
            inputs=inputs,
            output=output,
            dirname=RESULTS,
            device_id=self._device_id,
            batch=self.batch,
        )
        done = run_tool([*self._cli.command, *arguments], env=self._host.env, timeout=self._timeout, cwd=output)
        if done.status != 0:
            error = explain(f"ended with {done.status}", done.output)
            raise type(error)(f"{self._cli.command[-1]}: {error.found}", remedy=error.remedy)
        summary, printed = read_summary(output / RESULTS), parse_output(done.output)
        if summary is None or printed is None:
            raise ToolError(f"{self._cli.command[-1]} ended with 0 but left no summary: {done.tail}")
        if abs(printed.mean_ms / 1e3 / summary.mean_seconds - 1) > PRINTED_TOLERANCE:
            raise ToolError(f"printed a mean of {printed.mean_ms} ms, recorded {summary.mean_seconds * 1e3} ms")
        return summary


def file_route_pass(
    feed: Feed,
    route: FileRoute,
    decoder: Decoder,
    model: Model,
    plan: Plan,
    progress: Progress,
    *,
    folder: Path,
    chunk_images: int,
) -> Pass:
    """
    Run every image of a plan once by files.

    Files of a few hundred images exist at a time: all those of a large data set would fill a disk. Only the last chunk
    has a padded tail, as a single run would have.

    Parameters
    ----------
    folder : Path
        Disk for the files; nothing stays there.
    chunk_images : int
        Images at a time; rounded down to whole batches.

    Raises
    ------
    NoSpaceError
        If the disk is too small for one chunk.
    WrongDataError
        If result files are missing or of the wrong size.
    """
    size = max(chunk_images // route.batch, 1) * route.batch
    chunks = [plan.order[start : start + size] for start in range(0, len(plan.order), size)]
    require_space(folder, min(size, len(plan.order)) * _bytes_per_image(model), "one chunk of input and result files")
    parts: list[Detections] = []
    golden: list[Heads] = []
    calls: list[CallSample] = []
    with progress.step(plan.title) as advance:
        for place, rows in enumerate(chunks):
            kept = replace(plan, order=rows, golden=max(0, plan.golden - place * size))
            measured = _chunk(feed, route, decoder, model, kept, folder)
            parts.append(measured.detections)
            calls += measured.timing.calls
            golden += [measured.golden] if measured.golden.classes else []
            advance(min((place + 1) * size, len(plan.order)), len(plan.order))
    timing = PassTiming(plan.chip, route.batch, tuple(calls), (), TIMER, includes_copies=False)
    return Pass(Detections.concatenate(parts), timing, joined_heads(golden), 0)


def _bytes_per_image(model: Model) -> int:
    heads = sum(int(np.prod(shape)) for shape in head_shapes(model, 1))
    return 4 * (3 * model.image_size**2 + heads)


@contextmanager
def _folders(parent: Path) -> Iterator[tuple[Path, Path]]:
    # Both new and ours alone: results of an earlier run cannot be taken for ours, and newer tools ask for it.
    folder = Path(tempfile.mkdtemp(prefix="route-", dir=parent.resolve()))
    try:
        for name in ("in", "out"):
            (folder / name).mkdir(mode=0o700)
        yield folder / "in", folder / "out"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _chunk(feed: Feed, route: FileRoute, decoder: Decoder, model: Model, plan: Plan, folder: Path) -> Pass:
    stems = [f"{feed.image_ids[row]:012d}" for row in plan.order]
    with _folders(folder) as (inputs, output):
        for stem, row in zip(stems, plan.order, strict=True):
            feed.tensors([row]).astype("<f4", copy=False).tofile(inputs / f"{stem}.bin")
        summary = route.run(inputs, output)
        results = ResultFolder.open(output / RESULTS, model, summary, stems)
        results.require(stems)
        parts, golden = _decoded(feed, results, stems, decoder, plan)
    calls = tuple(_calls(summary, route.batch, len(stems)))
    timing = PassTiming(plan.chip, route.batch, calls, (), TIMER, includes_copies=False)
    return Pass(Detections.concatenate(parts), timing, joined_heads(golden), 0)


def _decoded(
    feed: Feed, results: ResultFolder, stems: Sequence[str], decoder: Decoder, plan: Plan
) -> tuple[list[Detections], list[Heads]]:
    parts, golden = [], []
    for start in range(0, len(stems), GROUP):
        heads = results.heads(stems[start : start + GROUP])
        rows = np.asarray(plan.order[start : start + GROUP])
        parts.append(decoder.decode(heads, feed.image_ids[rows], feed.scales[rows], feed.sizes[rows]))
        golden += [heads.rows(slice(0, plan.golden - start))] if start < plan.golden else []
    return parts, golden


def _calls(summary: Summary, batch: int, images: int) -> Iterator[CallSample]:
    runs = -(-images // batch)
    if len(summary.compute_seconds) != runs:
        raise ToolError(
            f"{summary.path.name} tells the time of {len(summary.compute_seconds)} executions",
            required=f"{runs}, one for each batch",
            remedy="versions before 2022-09-30 keep no list: use --route=worker, or a newer ais_infer",
        )
    for place, seconds in enumerate(summary.compute_seconds):
        yield CallSample(seconds, min(batch, images - place * batch))
