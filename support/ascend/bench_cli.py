"""The command-line tool that runs a compiled model over files, whichever generation is installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.ascend.acl_python import AclPython
from support.ascend.host import AscendHost
from support.ascend.processes import Finished, run_tool
from support.errors import ToolError

__all__ = ["BenchCli", "bench_arguments", "find_bench_cli"]

SCRIPT = "ais_infer.py"


@dataclass(frozen=True)
class BenchCli:
    """How to start the tool, and the options it has, from its own help."""

    command: tuple[str, ...]
    options: frozenset[str]


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
    on_path = shutil.which(SCRIPT, path=host.env.get("PATH", ""))
    ways = [[str(script)]] if script else [["-m", "ais_bench"], *([[on_path]] if on_path else [])]
    tried = []
    for way in ways:
        command = (str(python.path), *way)
        done = run_tool([*command, "--help"], env=host.env, timeout=timeout)
        options = frozenset(re.findall(r"--[A-Za-z_]+", done.output))
        if done.status == 0 and {"--model", "--input", "--output"} <= options:
            return BenchCli(command, options)
        tried.append(f"{' '.join(command)} --help: {done.status}, {_last_line(done)}")
    raise ToolError(
        f"neither ais_bench nor {SCRIPT} can be started: {'; '.join(tried)}",
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
