"""The guide's own route: inputs as files, ``ais_infer`` or ``ais_bench``, raw heads as files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from support.ascend.bench_cli import BenchCli, bench_arguments, explain_exit
from support.ascend.bench_summary import Printed, Summary, parse_output, read_summary
from support.ascend.host import AscendHost
from support.ascend.processes import run_tool
from support.detections import Decoder, Detections
from support.engine import Pass, Plan, joined_heads
from support.errors import ContractViolationError, ToolError
from support.feed import require_space
from support.heads import head_shapes
from support.own_folders import OwnFolder
from support.progress import Advance, Progress
from support.result_files import ResultFolder, decoded_results, timing_of
from support.spec import Model
from support.timing import PassTiming

if TYPE_CHECKING:
    from support.feed import Feed

__all__ = ["FileRoute", "file_route_pass"]

INPUTS, OUTPUT, RESULTS = "in", "out", "results"
#: Relative difference between the mean that is printed and the one that is recorded; they are the same number.
PRINTED_TOLERANCE = 1e-3


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

    def run(self, folder: Path) -> Summary:
        """
        Run the model over the files in ``in`` of a folder; results go to ``out/results`` in it.

        Parameters
        ----------
        folder : Path
            Ours alone, and without links in its path.

        Raises
        ------
        SuiteError
            What the tool's output means, if it did not end with 0.
        ContractViolationError
            If the model takes another number of images than the batch size.
        ToolError
            If it ended with 0 without a summary, or printed another mean than it recorded.
        """
        output = folder / OUTPUT
        arguments = bench_arguments(
            self._cli,
            om=self._own_copy(folder),
            inputs=folder / INPUTS,
            output=output,
            dirname=RESULTS,
            device_id=self._device_id,
            batch=self.batch,
        )
        done = run_tool([*self._cli.command, *arguments], env=self._host.env, timeout=self._timeout, cwd=folder)
        if done.status != 0:
            raise explain_exit(self._cli, done)
        summary, printed = read_summary(output / RESULTS), parse_output(done.output)
        if summary is None or printed is None:
            raise ToolError(f"{self._cli.name} ended with 0 but left no summary: {done.tail}")
        self._check(summary, printed)
        return summary

    def _own_copy(self, folder: Path) -> Path:
        # Newer versions refuse models that are links, that others may change, or that have odd names.
        om = folder / "model.om"
        shutil.copyfile(self._om, om)
        om.chmod(0o600)
        return om

    def _check(self, summary: Summary, printed: Printed) -> None:
        if printed.images_per_run not in (None, self.batch):
            raise ContractViolationError(
                f"the model given for batch {self.batch} takes batch {printed.images_per_run}",
                required=f"an input of {self.batch} images",
                remedy="a model under the wrong name: compare its file name with its input shape",
            )
        if abs(printed.mean_ms / 1e3 / summary.mean_seconds - 1) > PRINTED_TOLERANCE:
            raise ToolError(
                f"{self._cli.name} printed a mean of {printed.mean_ms} ms and recorded {summary.mean_seconds * 1e3} ms"
            )


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
    feed : Feed
        Network inputs.
    route : FileRoute
        Runs them.
    decoder : Decoder
        Of the network.
    model : support.spec.Model
        The network.
    plan : Plan
        Rows of the feed.
    progress : Progress
        Told of every group of images that is decoded.
    folder : Path
        Disk for the files; nothing stays there.
    chunk_images : int
        Images at a time; rounded down to whole batches, but at least one.

    Raises
    ------
    NoSpaceError
        If the disk is too small for one chunk.
    WrongDataError
        If result files are missing, of the wrong size, or surplus.
    ContractViolationError
        If the model takes another batch, or gave values that are not finite.
    """
    size, total = max(chunk_images // route.batch, 1) * route.batch, len(plan.order)
    require_space(folder, min(size, total) * _bytes_per_image(model), "one chunk of input and result files")
    parts: list[Pass] = []
    with progress.step(plan.title) as advance:
        for first in range(0, total, size):
            chunk = replace(plan, order=plan.order[first : first + size], golden=max(0, plan.golden - first))
            with _workspace(folder) as place:
                parts.append(_chunk(feed, route, decoder, model, chunk, place, _shifted(advance, first, total)))
    return Pass(
        Detections.concatenate([part.detections for part in parts]),
        _joined_timing([part.timing for part in parts]),
        joined_heads([part.golden for part in parts if part.golden.classes]),
        0,
    )


def _bytes_per_image(model: Model) -> int:
    heads = sum(int(np.prod(shape)) for shape in head_shapes(model, 1))
    return 4 * (3 * model.image_size**2 + heads)


def _shifted(advance: Advance, first: int, total: int) -> Advance:
    return lambda done, _: advance(first + done, total)


@contextmanager
def _workspace(parent: Path) -> Iterator[Path]:
    # New and ours alone: results of an earlier run cannot be taken for ours, and newer versions ask for it.
    folder = OwnFolder("acceptance-files-", parent)
    try:
        for name in (INPUTS, OUTPUT):
            (folder.path / name).mkdir(mode=0o700)
        yield folder.path
    finally:
        folder.close()


def _chunk(
    feed: Feed, route: FileRoute, decoder: Decoder, model: Model, plan: Plan, folder: Path, advance: Advance
) -> Pass:
    stems = [f"{feed.image_ids[row]:012d}" for row in plan.order]
    for stem, row in zip(stems, plan.order, strict=True):
        feed.tensors([row]).astype("<f4", copy=False).tofile(folder / INPUTS / f"{stem}.bin")
    summary = route.run(folder)
    results = ResultFolder.open(folder / OUTPUT / RESULTS, model, summary, stems)
    results.require(stems)
    detections, golden = decoded_results(results, stems, feed, plan, decoder, advance)
    return Pass(detections, timing_of(summary, route.batch, len(stems), plan.chip), golden, 0)


def _joined_timing(parts: Sequence[PassTiming]) -> PassTiming:
    # Samples of a part of the images are no measure of all.
    without = [part for part in parts if not part.calls]
    return without[0] if without else replace(parts[0], calls=tuple(call for part in parts for call in part.calls))
