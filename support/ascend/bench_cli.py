"""The command-line tool that runs a compiled model over files, whichever generation is installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.ascend.acl_errors import explain, last_lines
from support.ascend.acl_python import AclPython
from support.ascend.host import AscendHost
from support.ascend.processes import Finished, run_tool
from support.errors import ContractViolationError, DeviceLostError, NoSpaceError, SuiteError, ToolError

__all__ = ["BenchCli", "bench_arguments", "explain_exit", "find_bench_cli"]

SCRIPT = "ais_infer.py"
OWN_MODEL = "compile the network's own ONNX, for this batch size, with float32 input and without AIPP"
FRAMES = re.compile(r"^Traceback \(most recent call last\):\n(?: .*\n)+", re.MULTILINE)

#: Failures of the tool itself by a text it prints, first match: (text, error, meaning, remedy). All others are the
#: runtime's. The first is argparse's, and also how the third generation refuses paths.
RULES: tuple[tuple[str, type[SuiteError], str, str], ...] = (
    (
        ": error: ",
        ToolError,
        "it refuses its arguments",
        "a path must be ours, no soft link, not open to others, and have only A-Z a-z 0-9 _ . / -: give such a folder "
        "with --scratch=DIR; a device is a logic id: see --device-id",
    ),
    ("tensorsize: ", ContractViolationError, "the model takes no whole number of these inputs", OWN_MODEL),
    ("save out files error", ContractViolationError, "an output has no row for each image of the batch", OWN_MODEL),
    ("No space left on device", NoSpaceError, "the disk is full", "give --scratch=DIR on a disk with room"),
    ("MemoryError", NoSpaceError, "this host has too little memory", "use a smaller batch size, or end other jobs"),
    (
        "No module named",
        ToolError,
        "a Python module is missing",
        "pip install it into the interpreter of aclruntime, or name another with --acl-python=FILE",
    ),
)


@dataclass(frozen=True)
class BenchCli:
    """How to start the tool, and the options it has, from its own help."""

    command: tuple[str, ...]
    options: frozenset[str]

    @property
    def name(self) -> str:
        """What errors call it."""
        return Path(self.command[-1]).name


def find_bench_cli(host: AscendHost, python: AclPython, script: Path | None, *, timeout: float) -> BenchCli:
    """
    Find the tool.

    Parameters
    ----------
    host : AscendHost
        Environment it runs in.
    python : AclPython
        Its interpreter.
    script : Path or None
        ``ais_infer.py`` of 2022; else the module ``ais_bench``, else such a script on PATH.
    timeout : float
        Seconds its help may take.

    Raises
    ------
    ToolError
        If there is none; the message tells what each answered.
    """
    file = script or shutil.which(SCRIPT, path=host.env.get("PATH", ""))
    ways: list[tuple[str, ...]] = [] if script else [("-m", "ais_bench")]
    if file:
        # Absolute, because it will be started in another folder.
        ways.append((str(Path(file).absolute()),))
    tried = []
    for way in ways:
        command = (str(python.path.absolute()), *way)
        done = run_tool([*command, "--help"], env=host.env, timeout=timeout)
        options = frozenset(re.findall(r"--[A-Za-z_]+", done.output))
        if done.status == 0 and {"--model", "--input", "--output"} <= options:
            return BenchCli(command, options)
        tried.append(f"\n    {' '.join(command)} --help: {done.status}, {_last_line(done)}")
    raise ToolError(
        f"neither ais_bench nor {SCRIPT} can be started:{''.join(tried)}",
        remedy="install the ais_bench wheel beside aclruntime, or name the script of 2022 with --ais-infer=FILE",
    )


def _last_line(done: Finished) -> str:
    return (done.tail.splitlines() or ["no output"])[-1]


def bench_arguments(
    cli: BenchCli, *, om: Path, inputs: Path, output: Path, dirname: str, device_id: int, batch: int
) -> Sequence[str]:
    """
    Arguments for one run over a folder of inputs, as the guide gives them, in options every generation has.

    The batch size is given because the first generation takes 1 otherwise; it only scales the figure that is printed.
    """
    wanted = {
        "--model": om,
        "--input": inputs,
        "--output": output,
        "--output_dirname": dirname,
        "--outfmt": "BIN",
        "--device": device_id,
        "--batchsize": batch,
    }
    return [part for option, value in wanted.items() if option in cli.options for part in (option, str(value))]


def explain_exit(cli: BenchCli, done: Finished) -> SuiteError:
    """Turn a run that did not end with 0 into an error a user can act on."""
    # The frames of a traceback would push the native messages out of the last lines.
    output = FRAMES.sub("", done.output)
    if done.status < 0:
        return DeviceLostError(
            f"{cli.name} was ended by signal {-done.status}{last_lines(output)}",
            remedy="look at its last lines, dmesg and npu-smi info -t health",
        )
    ending = f"ended with {done.status}"
    for text, kind, meaning, remedy in RULES:
        if text in output:
            return kind(f"{cli.name} {ending}: {meaning}{last_lines(output)}", remedy=remedy)
    error = explain(ending, output)
    return type(error)(f"{cli.name}: {error.found}", required=error.required, remedy=error.remedy)
