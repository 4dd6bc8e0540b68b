"""
Measure a T4 baseline the way the guide does, for a table whose passport is complete.

Run it on the host with the T4, which must run nothing else meanwhile::

    python -m support.t4_protocol --onnx='model/d0_bs{batch}.onnx' --json=t4.json

It prints a ``[baselines.NAME]`` table for a spec; ``throughput.baseline_t4 = "NAME"`` makes the spec use it. The JSON
file holds every sample, the latency percentiles and the facts of the machine. Exit status: 0 measured, 2 nonsense on
the command line, 10 not measured.

The guide prints a script in section 7.2 that cannot run: it imports a name that needs a display and appends to a list
that does not exist. Its other lines are the protocol kept here: ONNX Runtime on CUDA, one tensor of standard normal
numbers given again and again, 200 calls of which the first is not left out, wall time of ``session.run`` with both
copies in it, and batch size over mean time. Whether the published table was made so is not known. Here the tensor has a
seed, the clock is monotonic, and a model that would run on another provider is an error.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from support.artifacts import file_sha256
from support.backends.base import Backend
from support.backends.onnx_runtime import CudaBackend, OnnxCpuBackend
from support.baselines import machine_identity, throughput_record
from support.capabilities import CPU, Capabilities, Chip, probe
from support.errors import DeviceBusyError, NoDataError, SuiteError, UsageError, WrongDataError
from support.options import batch_sizes_from_text
from support.spec import AcceptanceSpec, Baseline, load_spec
from support.timing import CallSample, PassTiming, ThroughputEstimate, estimate
from support.verdict import EXIT_STATUS

__all__ = ["CALLS", "Measured", "Request", "as_toml", "main", "measure"]

#: Guide, section 7.2: the loop of its script.
CALLS = 200
T4 = "T4"


@dataclass(frozen=True)
class Request:
    """
    What to measure.

    ``{batch}`` in `onnx` stands for the batch size. `provider` is ``cuda``, or ``cpu`` to try the command out;
    `any_gpu` admits a GPU that is no T4. Both, and another number of calls, are departures from the protocol.
    """

    onnx: str
    batch_sizes: tuple[int, ...]
    provider: str = "cuda"
    device_id: int = 0
    any_gpu: bool = False
    calls: int = CALLS

    def model(self, batch: int) -> Path:
        """Path of the model of a batch size."""
        return Path(self.onnx.replace("{batch}", str(batch)))


@dataclass(frozen=True)
class Measured:
    """What was measured: the table with its passport, what stands behind it, and how it departs from the protocol."""

    baseline: Baseline
    departures: tuple[str, ...]
    chip: Chip
    timings: tuple[PassTiming, ...]
    estimates: tuple[ThroughputEstimate, ...]
    models: dict[int, str]


def measure(request: Request, spec: AcceptanceSpec, found: Capabilities) -> Measured:
    """
    Time every batch size asked for.

    Parameters
    ----------
    request : Request
        What to measure.
    spec : AcceptanceSpec
        Gives the input size, the confidence of the interval and the published figures shown beside.
    found : Capabilities
        The machine.

    Raises
    ------
    UsageError
        If one model file is named for several batch sizes.
    NoDeviceError, WrongDeviceError, DeviceBusyError
        If there is no idle T4, or the model would run on another provider.
    NoDataError, WrongDataError
        If a model is missing, or is not of the batch size and input size it is named for.
    """
    _check_models(request)
    chip = _device(request, found)
    timings = tuple(_timed(request, spec, chip, batch) for batch in request.batch_sizes)
    rules = spec.throughput
    estimates = tuple(estimate(t, rules) for t in timings)
    return Measured(
        baseline=_passport(request, found, chip, estimates),
        departures=_departures(request, spec, chip),
        chip=chip,
        timings=timings,
        estimates=estimates,
        models={batch: file_sha256(request.model(batch)) for batch in request.batch_sizes},
    )


def _check_models(request: Request) -> None:
    if "{batch}" not in request.onnx and len(request.batch_sizes) > 1:
        raise UsageError(f"--onnx={request.onnx}: one file for several batch sizes", required="{batch} in the path")
    for batch in request.batch_sizes:
        if not request.model(batch).is_file():
            raise NoDataError(
                f"{request.model(batch)} does not exist",
                required="the modified ONNX model of every batch size",
                remedy="give --onnx=PATH with {batch} in it, or fewer --batch-sizes",
            )


def _device(request: Request, found: Capabilities) -> Chip:
    if request.provider == "cpu":
        return found.chip(CPU)
    name = T4
    if request.any_gpu and request.device_id < len(found.gpus):
        name = found.gpus[request.device_id].name.split()[-1]
    chip = found.chip(name, (request.device_id,))
    busy = found.gpus[request.device_id].utilisation
    if busy:
        raise DeviceBusyError(
            f"GPU {request.device_id} ({chip.model}) is {busy} % busy",
            required="an idle GPU, as the guide asks for",
            remedy="stop the other job, or give another --device-id",
        )
    return chip


def _timed(request: Request, spec: AcceptanceSpec, chip: Chip, batch: int) -> PassTiming:
    path = request.model(batch)
    backend: Backend = OnnxCpuBackend(path) if request.provider == "cpu" else CudaBackend(path, request.device_id)
    with backend:
        required = (batch, 3, spec.model.image_size, spec.model.image_size)
        if backend.input.shape != required:
            raise WrongDataError(f"{path}: the input is {backend.input}", required=f"shape {list(required)}")
        _call(backend, batch, request.calls)
        timing = PassTiming(
            chip=_chip_name(chip),
            batch=batch,
            calls=tuple(CallSample(seconds, batch) for seconds in backend.samples),
            warm_up=(),
            timer=backend.timer,
            includes_copies=backend.includes_copies,
        )
    _report(timing, spec)
    return timing


def _call(backend: Backend, batch: int, calls: int) -> None:
    from rich.console import Console
    from rich.progress import track

    tensor = np.random.default_rng(0).standard_normal(backend.input.shape, dtype=np.float32)
    # Drawn between the calls: a thread that draws on its own would run beside what is timed.
    for _ in track(range(calls), f"batch {batch}", console=Console(stderr=True), auto_refresh=False):
        backend.infer(tensor)


def _report(timing: PassTiming, spec: AcceptanceSpec) -> None:
    mean = sum(call.seconds for call in timing.calls) / len(timing.calls)
    published = spec.baselines[spec.throughput.baseline_t4].images_per_second.get(timing.batch)
    sys.stderr.write(
        f"batch {timing.batch}: {timing.batch / mean:.3f} images/s on {timing.chip} (published for T4: {published}); "
        f"a call {mean * 1e3:.2f} ms, the first {timing.calls[0].seconds * 1e3:.2f} ms\n"
    )


def _chip_name(chip: Chip) -> str:
    return chip.name if chip.name in (CPU, T4) else chip.model


def _passport(request: Request, found: Capabilities, chip: Chip, estimates: Sequence[ThroughputEstimate]) -> Baseline:
    version = found.packages.get("onnxruntime-gpu") or found.packages.get("onnxruntime", "of unknown version")
    return Baseline(
        chip=_chip_name(chip),
        runtime=f"ONNX Runtime {'CPU' if request.provider == 'cpu' else 'GPU'} {version}",
        timer=estimates[0].timer,
        includes_copies=estimates[0].includes_copies,
        precision="fp32",
        input="random, standard normal, one tensor for all calls",
        warm_up="none, the first call counts",
        count=f"{request.calls} calls",
        driver=chip.driver or "none",
        date=dt.date.today(),
        source=f"measured with support.t4_protocol (guide, section 7.2) on {chip.model}",
        images_per_second={item.batch: round(item.images_per_second, 3) for item in estimates},
    )


def _departures(request: Request, spec: AcceptanceSpec, chip: Chip) -> tuple[str, ...]:
    missing = sorted(set(spec.batch_sizes) - set(request.batch_sizes))
    departures = {
        f"measured on {chip.model}, not on a T4": T4 not in chip.model.split() or request.provider == "cpu",
        f"{request.calls} calls instead of {CALLS}": request.calls != CALLS,
        f"no figure for batch {', '.join(map(str, missing))}": bool(missing),
    }
    return tuple(what for what, departs in departures.items() if departs)


def as_toml(name: str, measured: Measured) -> str:
    """
    Write the table for a spec, under comments that name every departure from the protocol.

    Parameters
    ----------
    name : str
        Name of the baseline.
    measured : Measured
        What was measured.
    """
    fields = measured.baseline.model_dump(exclude={"images_per_second", "date", "includes_copies"})
    figures = ", ".join(f"{batch} = {figure}" for batch, figure in measured.baseline.images_per_second.items())
    return "\n".join(
        [
            *(f"# not the guide's T4 protocol: {departure}" for departure in measured.departures),
            f"[baselines.{name}]",
            # A JSON string is a TOML basic string.
            *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()),
            f"includes_copies = {str(measured.baseline.includes_copies).lower()}",
            f"date = {measured.baseline.date.isoformat()}",
            f"images_per_second = {{ {figures} }}\n",
        ]
    )


def _as_json(measured: Measured, spec: AcceptanceSpec, found: Capabilities) -> dict[str, Any]:
    host = {"node": found.host, "cpu": {"brand_raw": found.cpu, "count": found.cores}}
    machine = machine_identity(host, measured.chip.serial)
    records = [throughput_record(item, spec=spec.name, machine=machine) for item in measured.estimates]
    return {
        "baseline": measured.baseline.model_dump(mode="json"),
        "departures": list(measured.departures),
        "chip": measured.chip.model_dump(),
        "machine": found.model_dump(mode="json"),
        "models": measured.models,
        "throughput": [record.model_dump(mode="json") for record in records],
        "timings": [timing.as_json() for timing in measured.timings],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command-line arguments; those of the process by default.
    """
    options = _parser().parse_args(arguments)
    try:
        spec = load_spec(options.spec)
        found = probe(timeout=spec.timeouts.probe)
        measured = measure(_request(options, spec), spec, found)
    except SuiteError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, UsageError) else EXIT_STATUS["undetermined"]
    if options.json:
        options.json.write_text(json.dumps(_as_json(measured, spec, found), indent=1), encoding="utf-8")
    sys.stdout.write(as_toml(options.name, measured))
    return 0


def _request(options: argparse.Namespace, spec: AcceptanceSpec) -> Request:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", options.name):
        raise UsageError(f"--name={options.name}: not a bare TOML key", required="letters, digits, - and _")
    if options.calls < 1 or options.device_id < 0:
        raise UsageError(f"--calls={options.calls} --device-id={options.device_id}: out of range")
    if options.json and not options.json.parent.is_dir():
        raise UsageError(f"--json={options.json}: no such folder")  # known before an hour of measuring
    return Request(
        onnx=options.onnx,
        batch_sizes=batch_sizes_from_text(options.batch_sizes) if options.batch_sizes else spec.batch_sizes,
        provider=options.provider,
        device_id=options.device_id,
        any_gpu=options.any_gpu,
        calls=options.calls,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m support.t4_protocol", description="Measure a T4 baseline the way the guide does."
    )
    add = parser.add_argument
    add("--onnx", required=True, metavar="PATH", help="modified ONNX models; {batch} stands for the batch size")
    add("--batch-sizes", metavar="LIST", help="for example 1,4 (default: all of the spec)")
    add("--spec", default="efficientdet_d0", metavar="NAME|PATH", help="acceptance spec (default: efficientdet_d0)")
    add("--provider", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the command out (default: cuda)")
    add("--device-id", type=int, default=0, metavar="N", help="GPU in PCI order (default: 0)")
    add("--any-gpu", action="store_true", help="measure another GPU than a T4, under its own name (default: refuse)")
    add("--calls", type=int, default=CALLS, metavar="N", help=f"calls for each batch size (default: {CALLS})")
    add("--name", default="t4-measured", help="name of the baseline in the spec (default: t4-measured)")
    add("--json", type=Path, metavar="FILE", help="write samples, percentiles and machine (default: do not)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
