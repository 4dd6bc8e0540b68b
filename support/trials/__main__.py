"""The command line of the trials."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from support.errors import SuiteError
from support.trials.gate import Gate
from support.trials.harms import harm_gates
from support.trials.kills import kill_gates
from support.trials.together import run_gates_together

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line ``python -m support.trials --kills=200``.

    Returns
    -------
    status : int
        0 if all was borne, 1 if not, 130 if interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m support.trials", description="Try the gate by what befalls it.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--kills", type=int, help="kill it so many times")
    which.add_argument("--harms", type=int, help="harm its files and disks so many times")
    which.add_argument("--sessions", type=int, help="run so many at once")
    parser.add_argument(
        "--whole-kit",
        action="store_true",
        help="with --kills: all images and batch sizes of the kit, in 10 GB, instead of 16 images at batch size 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of moments, blows and places (default: 0)")
    parser.add_argument("--chip", default="cpu", help="cpu, or a simulated chip such as sim:310P3 (default: cpu)")
    given = parser.parse_args(arguments)
    if given.whole_kit and given.kills is None:
        parser.error("--whole-kit goes with --kills only")
    folder = Path(tempfile.mkdtemp(prefix="acceptance-trials-"))
    try:
        print(_tried(Gate(folder / "gate", given.chip, whole_kit=given.whole_kit), given))  # noqa: T201 - the result
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        status = 130
    except (SuiteError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}\nkept: {folder}", file=sys.stderr)  # noqa: T201
        return 1
    else:
        status = 0
    shutil.rmtree(folder, ignore_errors=True)
    return status


def _tried(gate: Gate, given: argparse.Namespace) -> str:
    if given.kills is not None:
        return kill_gates(gate, given.kills, given.seed, _say)
    if given.harms is not None:
        return harm_gates(gate, given.harms, given.seed, _say)
    return run_gates_together(gate, given.sessions, _say)


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)  # noqa: T201 - progress of a command line


if __name__ == "__main__":
    sys.exit(main())
