"""Faults of the spec and of the session: limits that were edited, and sessions that measure less than they must."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from support.errors import SpecError
from support.faults.bench import BATCH, Bench
from support.faults.fault import Registry
from support.faults.worlds import CHECKOUT, KIT_SPEC
from support.run import Run
from support.spec import load_spec
from support.verdict import EXIT_STATUS, REASONS, ClauseVerdict

__all__ = ["REGISTRY", "SPEC"]

SPEC = Registry("spec")
REGISTRY = Registry("session")
#: Stands for the clause where a whole session, or its spec, must be refused.
SESSION = "session"


def _spec(bench: Bench, *changes: tuple[str, str]) -> Path:
    """Edit a copy of the published spec; each change is a pattern and what takes its place."""
    text = (CHECKOUT / "acceptance/efficientdet_d0.toml").read_text(encoding="utf-8")
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text, count=1, flags=re.DOTALL)
        if not count:
            raise ValueError(f"the spec has no {pattern}")
    path = bench.new_folder("spec") / "edited.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _loaded(path: Path) -> ClauseVerdict:
    try:
        load_spec(str(path))
    except SpecError as error:
        return ClauseVerdict(clause=SESSION, word="rejected", suspect=str(error))
    return ClauseVerdict(clause=SESSION, word="accepted")


@SPEC.add(SESSION, "clauses: missing coverage")
def clause_left_out(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """A clause was taken out of the spec."""
    return _loaded(_spec(bench, (r"\[clauses\.coverage\].*?(?=\[clauses\.score_agreement\])", "")))


@SPEC.add(SESSION, "must name the distribution")
def limit_without_a_source(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """A limit of our own does not say which clean runs it comes from."""
    return _loaded(_spec(bench, (r'distribution = "[^"]*"\n', "")))


@SPEC.add(SESSION, "it is measured as a max")
def limit_turned_round(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """A maximum was turned into a minimum."""
    return _loaded(_spec(bench, (r'(limits\.score_p99\]\nvalue = \S+\nunit = "score"\ndirection = )"max"', r'\1"min"')))


@SPEC.add(SESSION, "not-a-release", reason="not-a-release")
def limit_loosened(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """A release is asked for with a copy of the spec in which a limit was loosened."""
    path = bench.new_folder("spec") / "loose.toml"
    text = '[clauses.score_agreement.limits.score_p99]\nvalue = 0.5\nunit = "score"\ndirection = "max"\n'
    path.write_text(
        f'extends = "{KIT_SPEC}"\n{text}source = "own"\ndate = 2026-11-24\ndistribution = "none"\n', encoding="utf-8"
    )
    return _session(bench, f"--spec={path}", "--release", "-k", "test_dataset", reason="not-a-release")


def _session(bench: Bench, *arguments: str, reason: str) -> ClauseVerdict:
    """Run a session of the gate of its own; gives its last line as the finding."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "acceptance", "--chip=cpu", "-q"]
    command += [f"--artifacts={bench.artifacts.resolve()}", f"--report-dir={bench.new_folder('report') / 'bundle'}"]
    done = subprocess.run(
        [*command, *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=600, check=False
    )
    last = (done.stdout.rstrip().splitlines() or [done.stderr])[-1]
    given = [part.strip() for part in last.rpartition(": ")[2].split(",")]
    word = {status: name for name, status in EXIT_STATUS.items()}.get(done.returncode)
    if word != "undetermined" or not set(given) <= REASONS.keys() or reason not in given:
        return ClauseVerdict(clause=SESSION, word=word or "undetermined", findings=(done.stdout[-2000:],))
    return ClauseVerdict(clause=SESSION, word=word, reason=reason, findings=(last,))


@REGISTRY.add(SESSION, "partial", reason="partial")
def clauses_deselected(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """A session leaves out clauses with -k."""
    return _session(bench, f"--spec={KIT_SPEC}", "-k", "test_dataset or test_the_graph", reason="partial")


@REGISTRY.add(SESSION, "not-serial", reason="not-serial", step="timing")
def timed_beside_parallel_workers(bench: Bench, stack: ExitStack) -> ClauseVerdict:
    """Throughput is measured beside parallel workers."""
    return _session(bench, f"--spec={KIT_SPEC}", "-n", "2", "-k", "timed_pass and bs1]", reason="not-serial")


@REGISTRY.add("accuracy_guide_floor", "AP", batch=BATCH, reason="partial")
def fewer_images(bench: Bench, stack: ExitStack) -> Run:
    """Only the first images are run."""
    return bench.replayed(stack, limit=64)
