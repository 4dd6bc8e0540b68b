"""Faults of compiler and device, on the simulated toolchain."""

from __future__ import annotations

import shlex
from contextlib import ExitStack

from support.ascend.processes import run_tool
from support.faults.bench import OTHER_BATCH, Bench
from support.faults.fault import Registry
from support.run import Run
from support.simulator.host import Simulation, simulated_host
from support.spec import AcceptanceSpec

__all__ = ["COMPILE", "REGISTRY"]

COMPILE = Registry("compile")
REGISTRY = Registry("device")
CHIP = "sim:310P3,v3"
#: Seconds of a call after which a device counts as hung here; a call of the clean one takes less than two.
PATIENCE = 20.0


def _impatient(spec: AcceptanceSpec, seconds: float) -> AcceptanceSpec:
    return spec.model_copy(update={"timeouts": spec.timeouts.model_copy(update={"infer_call": seconds})})


def _compiled(bench: Bench, *options: str, soc: str = "Ascend310P3") -> str:
    """Compile the candidate with other options, as somebody might have by hand; gives the path for --om."""
    folder, source = bench.new_folder("om"), bench.run_over(bench.small_world).built.modified(OTHER_BATCH).path
    (folder / "ops.json").write_text('{"black-list": {"to-add": ["ReduceMeanD"]}}', encoding="utf-8")
    host = simulated_host(folder / "host", Simulation("310P3"))
    arguments = [
        "--framework=5",
        f"--model={source.resolve()}",
        f"--output={folder / f'bs{OTHER_BATCH}'}",
        f"--soc_version={soc}",
        "--precision_mode=allow_mix_precision",
        f"--modify_mixlist={folder / 'ops.json'}",
        *options,
    ]
    done = run_tool([str(folder / "host/bin/atc"), *arguments], env=host.env, timeout=300)
    if done.status:
        raise RuntimeError(f"atc {shlex.join(arguments)}: {done.output}")
    return f"{folder}/bs{{batch}}.om"


@COMPILE.add("om_contract", "a model under the wrong name, or other options of atc", batch=OTHER_BATCH)
def precision_list_ignored(bench: Bench, stack: ExitStack) -> Run:
    """The compiler ignores the list of operators that keep float32."""
    store = bench.new_folder("store")
    onnx = bench.run_over(bench.small_world).built.modified(OTHER_BATCH).path
    return bench.simulated(f"{CHIP},fault=mixlist-ignored", artifacts=store, onnx=str(onnx))


@COMPILE.add("om_contract", "cannot be loaded", batch=OTHER_BATCH, reason="tool-error")
def model_for_another_chip(bench: Bench, stack: ExitStack) -> Run:
    """The model was compiled for a 310."""
    return bench.simulated(CHIP, om=_compiled(bench, soc="Ascend310"))


@COMPILE.add("coverage", "--output_type=FP32", batch=OTHER_BATCH)
def outputs_in_half_precision(bench: Bench, stack: ExitStack) -> Run:
    """The model was compiled with float16 outputs."""
    return bench.simulated(CHIP, om=_compiled(bench, "--output_type=FP16"))


@COMPILE.add("stage_tensors", "overflow: ReduceMeanD", batch=OTHER_BATCH)
def squeeze_sums_overflow(bench: Bench, stack: ExitStack) -> Run:
    """Nothing keeps the sums of squeeze and excitation from overflowing, and the runtime hides it."""
    spec = bench.small_world.spec
    spec = spec.model_copy(update={"atc": spec.atc.model_copy(update={"modify_mixlist": {}})})
    return bench.simulated(CHIP, spec=spec)


@COMPILE.add("om_contract", "atc", batch=OTHER_BATCH, reason="tool-error")
def no_compiler(bench: Bench, stack: ExitStack) -> Run:
    """The compiler is not installed."""
    onnx = bench.run_over(bench.small_world).built.modified(OTHER_BATCH).path
    return bench.simulated(f"{CHIP},fault=no-atc", artifacts=bench.new_folder("store"), onnx=str(onnx))


@REGISTRY.add("timed_outputs", "cached outputs, or a runtime that skips work", batch=OTHER_BATCH)
def outputs_of_the_call_before(bench: Bench, stack: ExitStack) -> Run:
    """Every call gives the outputs of the one before."""
    return bench.simulated("sim:310P3,v2,fault=previous-outputs")


def _broken(fault: str, reason: str, says: str, corrupts: str, patience: float = PATIENCE) -> None:
    def act(bench: Bench, stack: ExitStack) -> Run:
        spec = _impatient(bench.small_world.spec, patience)
        return bench.simulated(f"{CHIP},fault={fault}", spec=spec)

    act.__name__, act.__doc__ = f"device_{fault.replace('-', '_')}", corrupts
    REGISTRY.add("coverage", says, batch=OTHER_BATCH, reason=reason)(act)


_broken("hang", "timeout", "took longer than", "A call never ends.", patience=3.0)
_broken("crash", "device-lost", "ended with signal", "The runtime aborts in the first call.")
_broken("vanish", "device-lost", "507899", "The device falls off the bus in the middle of a pass.")
_broken("busy", "busy-device", "python3", "Somebody else's job runs on the device.")
_broken("job-starts", "busy-device", "python3", "Somebody else's job starts on the device during the pass.")
_broken("alarm", "no-device", "health", "The driver reports an alarm.")
_broken("no-memory", "no-space", "too little memory", "The model does not fit into the device's memory.")
_broken("renumbered", "wrong-device", "ASCEND_RT_VISIBLE_DEVICES", "The environment renumbers the devices.")
_broken("not-sourced", "tool-error", "libascendcl", "The environment of CANN is missing.")
