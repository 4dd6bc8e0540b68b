"""Work on evidence from the command line: sign a bundle, or compare two releases."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from support.errors import SuiteError, UsageError
from support.evidence.bundle import read_bundle
from support.evidence.comparison import compare
from support.evidence.signature import sign
from support.report.text import visible
from support.verdict import EXIT_STATUS

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command-line arguments; those of the process by default.

    Returns
    -------
    status : int
        0; 1 if the later of two releases has a loosened limit; that of an undetermined verdict if a bundle cannot be
        used; 2 for a command line that makes no sense.
    """
    options = _parser().parse_args(arguments)
    try:
        return _signed(options.bundle, options.key) if options.action == "sign" else _compared(options.old, options.new)
    except SuiteError as error:
        sys.stderr.write("".join(f"{visible(line)}\n" for line in str(error).splitlines()))
        return 2 if isinstance(error, UsageError) else EXIT_STATUS["undetermined"]


def _signed(bundle: Path, key: Path) -> int:
    read_bundle(bundle)  # nobody should put a name to a bundle that is not whole
    sign(bundle, key)
    sys.stdout.write(f"{bundle} is signed with {key}\n")
    return 0


def _compared(old: Path, new: Path) -> int:
    found = compare(read_bundle(old), read_bundle(new))
    sys.stdout.write("".join(f"{visible(line)}\n" for line in found.lines))
    sys.stdout.write(f"{len(found.loosened)} loosened limits, {len(found.limits)} changed\n")
    return 1 if found.loosened else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m support.evidence", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    signing = actions.add_parser("sign", help="sign a bundle with ssh-keygen")
    signing.add_argument("bundle", type=Path, help="folder of the bundle")
    signing.add_argument("--key", type=Path, required=True, help="private key, or a public one whose half an agent has")
    comparing = actions.add_parser(
        "compare",
        help="compare two releases: limits, AP, classes, throughput, artifacts; status 1 if a limit is looser",
    )
    comparing.add_argument("old", type=Path, help="bundle of the earlier release")
    comparing.add_argument("new", type=Path, help="bundle of the later release")
    return parser


if __name__ == "__main__":
    sys.exit(main())
