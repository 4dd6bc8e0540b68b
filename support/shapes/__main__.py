"""Command line of the Shapes kit: make the validation set, train a checkpoint, measure its reference."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from support.errors import SuiteError, UsageError
from support.progress import Advance
from support.shapes.reference import write_reference
from support.shapes.training import TrainingPlan, train
from support.shapes.validation import IMAGE_COUNT, write_validation_set

__all__ = ["main"]


class _Terminal:
    """Shows each step as a bar on standard error."""

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(title, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Returns
    -------
    status : int
        0 if it did its work, 1 if it failed, 2 if the command line makes no sense, 130 if interrupted.
    """
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], str] = given.command
    # effdet still decorates its post-processing with torch.jit.script, which the user cannot change.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    try:
        print(command(given))  # noqa: T201 - the result of a command line
    except (SuiteError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m support.shapes", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_validation(commands)
    _add_train(commands)
    _add_reference(commands)
    return parser


def _add_validation(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = f"write the validation set of {IMAGE_COUNT} images in COCO layout; always the same images"
    parser = commands.add_parser("validation", help=text, description=text)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make; may exist if it is empty")
    parser.set_defaults(command=_validation)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = TrainingPlan()
    text = "train a checkpoint from scratch; the full plan takes two hours on two cores and 4 GB of memory"
    parser = commands.add_parser("train", help=text, description=text)
    parser.add_argument("out", metavar="OUT.pth", type=Path, help="file to write; must not exist")
    parser.add_argument("--steps", type=_positive, default=plan.steps, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--pool", type=_positive, default=plan.pool, help="training scenes (default: %(default)s)")
    parser.add_argument(
        "--peak-rate", type=_rate, default=plan.peak_rate, help="largest learning rate (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished training beside OUT.pth")
    parser.set_defaults(command=_train)


def _add_reference(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "measure a checkpoint with the code of effdet and pycocotools alone"
    parser = commands.add_parser("reference", help=text, description=text)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="state dict of tf_efficientdet_d0")
    parser.add_argument("root", metavar="ROOT", type=Path, help="data set in COCO layout, as `validation` writes it")
    parser.add_argument("out", metavar="OUT.json", type=Path, help="file to write, replaced if it exists")
    parser.set_defaults(command=_reference)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def _rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < (rate := float(text)) < math.inf:
            return rate
    raise argparse.ArgumentTypeError(f"{text} is not a positive number")


def _validation(given: argparse.Namespace) -> str:
    write_validation_set(given.out, _Terminal())
    return f"{given.out}: {IMAGE_COUNT} images"


def _train(given: argparse.Namespace) -> str:
    plan = TrainingPlan(steps=given.steps, pool=given.pool, peak_rate=given.peak_rate)
    loss = train(given.out, plan, _Terminal(), resume=given.resume)
    return f"{given.out}: {plan.steps} steps, last loss {loss:.3f}"


def _reference(given: argparse.Namespace) -> str:
    figures = write_reference(given.checkpoint, given.root, given.out, _Terminal())
    return f"{given.out}: AP {100 * figures['ap']['AP']:.2f} over {figures['images']} images"


if __name__ == "__main__":
    sys.exit(main())
