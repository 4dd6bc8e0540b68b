"""Records of evidence from the parts of a run, with nothing in them that tells whose machine it was."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from support.artifacts import Artifact
from support.capabilities import CPU, Capabilities, Chip
from support.code import measuring_code
from support.dataset import CocoDataset
from support.engine import Pass
from support.evidence.model import (
    AskedFor,
    CodeRecord,
    DatasetRecord,
    Environment,
    ModelRecord,
    PassRecord,
    SelfTestRecord,
    pass_name,
)
from support.evidence.roots import Roots
from support.faults.record import recorded_selftest, suite_code
from support.localiser.record import Localisation
from support.options import RunOptions
from support.spec import AcceptanceSpec
from support.timing import PassTiming
from support.verdict import ClauseVerdict, ReleaseVerdict

__all__ = [
    "asked_for",
    "code_record",
    "dataset_record",
    "environment",
    "hidden_localisation",
    "hidden_spec",
    "hidden_verdict",
    "model_record",
    "pass_record",
    "selftest_record",
]

#: Seconds git may take; it reads one small checkout.
GIT_TIMEOUT = 30.0
UNKNOWN = "unknown"
#: Options that `AskedFor` has fields of their own for.
_FIELDS = frozenset({"spec", "chip", "batch_sizes", "limit", "scorer", "comparing", "release"})


def asked_for(options: RunOptions, spec: AcceptanceSpec, argv: Sequence[str], roots: Roots) -> AskedFor:
    """
    Tell what was asked for.

    Parameters
    ----------
    options : RunOptions
        As read from the command line.
    spec : AcceptanceSpec
        The spec they name.
    argv : sequence of str
        Arguments of the command line.
    roots : Roots
        Where paths are told from.
    """
    defaults = RunOptions()
    given = {
        field.name: value
        for field in dataclasses.fields(options)
        if field.name not in _FIELDS and (value := getattr(options, field.name)) != getattr(defaults, field.name)
    }
    return AskedFor(
        spec=roots.hide(options.spec),
        chip=options.chip_name,
        device=options.device,
        mode=options.mode,
        batch_sizes=options.batches(spec),
        limit=options.limit,
        scorer=options.scorer,
        comparing=options.comparing,
        release=options.release,
        not_release=tuple(map(roots.hide, options.not_release(spec))),
        options={name: _told(value, roots) for name, value in given.items()},
        argv=tuple(map(roots.hide, argv)),
    )


def _told(value: object, roots: Roots) -> JsonValue:
    # A relative path would tell nothing without the folder it was relative to.
    return roots.hide_all(to_jsonable_python(value.absolute() if isinstance(value, Path) else value))


def environment(capabilities: Capabilities, chip_name: str, chip: Chip | None) -> Environment:
    """
    Tell what the run was measured on.

    Parameters
    ----------
    capabilities : Capabilities
        What was probed.
    chip_name : str
        The chip asked for.
    chip : Chip or None
        The device under test, if it was found.
    """
    found = chip or Chip(name=chip_name, device_id=0, model="", serial="", driver="")
    return Environment(
        cpu=capabilities.cpu,
        cores=capabilities.cores,
        memory_gib=capabilities.memory_gib,
        system=capabilities.system,
        python=capabilities.python,
        packages=dict(capabilities.packages),
        chip=chip_name,
        chip_model=found.model,
        driver=found.driver,
        firmware=found.firmware,
        # A CPU has no serial number; it is identified by the name of its host, which is nobody's business.
        serial="" if chip_name == CPU else found.serial,
        simulation=capabilities.simulation,
    )


def code_record(checkout: Path) -> CodeRecord:
    """
    Tell which revision of the suite judged, and whether it was changed.

    Parameters
    ----------
    checkout : Path
        Root folder of the suite.
    """
    revision, changes = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain", "-uno")
    return CodeRecord(
        revision=revision or UNKNOWN, dirty=None if changes is None else bool(changes), measuring=measuring_code()
    )


def _git(checkout: Path, *arguments: str) -> str | None:
    # A copy that lies in another project's checkout is none of its revisions.
    command = ["git", "-C", str(checkout), "--no-optional-locks", *arguments]
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def dataset_record(dataset: CocoDataset, whole: int) -> DatasetRecord:
    """Tell which images were used, of `whole` that the data set has without ``--limit``."""
    return DatasetRecord(
        annotation_digest=dataset.annotation_digest,
        size_digest=dataset.size_digest,
        images=len(dataset.images),
        whole=whole,
    )


def model_record(artifact: Artifact, batch: int | None, roots: Roots) -> ModelRecord:
    """Tell how an artifact was made, with paths below named roots."""
    made_by = roots.hide_all(to_jsonable_python(dict(artifact.made_by)))
    return ModelRecord(
        kind=artifact.kind, batch=batch, sha256=artifact.sha256, made_by=cast("Mapping[str, JsonValue]", made_by)
    )


def pass_record(batch: int, measured: Pass, timing: PassTiming | None, model_sha256: str | None) -> PassRecord:
    """Tell of a pass; `timing` is that of the pass that was timed, if there was one."""
    return PassRecord(
        detections=pass_name(batch),
        padded_scored=measured.padded_scored,
        timing=timing,
        model_sha256=model_sha256,
    )


def selftest_record(store: Path) -> SelfTestRecord | None:
    """Tell how the last whole self-test in a store of artifacts ended; None if there was none."""
    found = recorded_selftest(store)
    if found is None:
        return None
    return SelfTestRecord(
        ended=found.ended,
        same_code=found.code == suite_code(),
        full=found.full,
        faults=len(found.faults),
        missed=tuple(outcome.fault for outcome in found.faults if not outcome.caught),
        clean_runs=len(found.clean_runs),
        false_alarms=tuple(run.name for run in found.clean_runs if run.red),
    )


def hidden_verdict(verdict: ReleaseVerdict, roots: Roots) -> ReleaseVerdict:
    """Return the verdict with paths and names kept out of its texts; words and numbers stay as they are."""
    return verdict.model_copy(
        update={
            "subject": roots.hide(verdict.subject),
            "clauses": tuple(_hidden_clause(clause, roots) for clause in verdict.clauses),
        }
    )


def _hidden_clause(clause: ClauseVerdict, roots: Roots) -> ClauseVerdict:
    return clause.model_copy(
        update={
            "findings": tuple(map(roots.hide, clause.findings)),
            "suspect": roots.hide(clause.suspect),
            "origin": {roots.hide(key): roots.hide(value) for key, value in clause.origin.items()},
        }
    )


def hidden_localisation(found: Localisation, roots: Roots) -> Localisation:
    """Return the search for a cause with paths kept out of its texts."""
    update = {name: tuple(map(roots.hide, getattr(found, name))) for name in ("groups", "notes")}
    return found.model_copy(update={**update, "suspect": roots.hide(found.suspect)})


def hidden_spec(spec: AcceptanceSpec, roots: Roots) -> AcceptanceSpec:
    """Return the spec with the places of checkpoint and data set told from named roots; its digest follows."""
    checkpoint = spec.checkpoint.model_copy(update={"path": roots.hide(spec.checkpoint.path)})
    dataset = spec.dataset.model_copy(update={"root": roots.hide(spec.dataset.root)})
    return spec.model_copy(update={"checkpoint": checkpoint, "dataset": dataset})
