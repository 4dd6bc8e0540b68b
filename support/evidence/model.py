"""What a bundle of evidence says: typed records, and the JSON Schema of the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from support.clauses import Mode, Precision
from support.localiser.record import Localisation
from support.scoring import Scorer
from support.spec import AcceptanceSpec, PositiveInt, Sha256, Text
from support.timing import PassTiming
from support.verdict import REASONS, ReleaseVerdict
from support.waivers import Waiver

__all__ = [
    "EVIDENCE",
    "REFERENCE",
    "SEAL",
    "SIGNATURE",
    "TRUTH",
    "AskedFor",
    "BundleName",
    "CheckpointRecord",
    "CodeRecord",
    "DatasetRecord",
    "Environment",
    "EvidenceDocument",
    "LadderRecord",
    "ModelRecord",
    "PassRecord",
    "ReferenceRecord",
    "SealedFile",
    "json_schema",
    "pass_name",
    "schema_text",
]

EVIDENCE, SEAL, SIGNATURE = "evidence.json", "evidence.sha256", "evidence.json.sig"
TRUTH, REFERENCE = "ground_truth.json.gz", "detections/reference.npz"

#: Name of a file in a bundle, relative to its folder: no part begins with a dot, so none can lead out of it.
BundleName = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)
]
NotNegative = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    # As strings, because JSON has no NaN, which is the AP of images without objects.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings")


class AskedFor(_Record):
    """
    The run as asked for.

    `device` is what was judged, in words, and `chip` the name of the chip, also of a simulated one. `not_release` names
    everything that made the run something other than a release run. `options` are all other options that were given,
    with paths below named roots such as ``{checkout}/model/d0.pth``, and `argv` the arguments as they were typed, with
    the same roots.
    """

    spec: Text
    chip: Text
    device: Text
    mode: Mode
    batch_sizes: tuple[PositiveInt, ...] = Field(min_length=1)
    limit: PositiveInt | None = None
    scorer: Scorer
    comparing: bool = False
    release: bool = False
    not_release: tuple[Text, ...] = ()
    options: Mapping[str, JsonValue] = {}
    argv: tuple[str, ...] = ()


class Environment(_Record):
    """
    The machine and the device under test; no name of host or user is in it.

    `simulation` tells what was simulated; empty on hardware. `serial` is that of the accelerator; empty on a CPU.
    """

    cpu: str
    cores: PositiveInt
    memory_gib: float
    system: str
    python: str
    packages: Mapping[str, str]
    chip: Text
    chip_model: str = ""
    driver: str = ""
    firmware: str = ""
    serial: str = ""
    simulation: str = ""


class CodeRecord(_Record):
    """
    The suite that judged.

    `revision` is git's commit hash, or ``unknown`` outside a checkout; `dirty` whether tracked files had changed since
    (None if unknown); `measuring` the SHA-256 of the modules from feed to detections.
    """

    revision: Text
    dirty: bool | None
    measuring: Sha256


class CheckpointRecord(_Record):
    """The weights everything was made from: their hash, and the name they are known by, if any."""

    sha256: Sha256
    known_as: str = ""


class DatasetRecord(_Record):
    """
    The images of the run.

    The digests are those of exactly these images; `images` is how many there are, `whole` how many the data set has
    without ``--limit``.
    """

    annotation_digest: Sha256
    size_digest: Sha256
    images: PositiveInt
    whole: PositiveInt


class ModelRecord(_Record):
    """One artifact of the run: its stage, batch size if it has one, hash, and recipe or command it was made by."""

    kind: Text
    batch: PositiveInt | None = None
    sha256: Sha256
    made_by: Mapping[str, JsonValue] = {}


class PassRecord(_Record):
    """
    One pass of the candidate over the images.

    `timing` holds every sample of the pass that was timed, which is the same pass unless several devices shared the
    images; None if there was none. `detections` names the file of what was found, `model_sha256` the model that found
    it (None for result files).
    """

    detections: BundleName
    padded_scored: NotNegative
    timing: PassTiming | None = None
    model_sha256: Sha256 | None = None


class ReferenceRecord(_Record):
    """What the checkpoint itself reached on the images of the run: AP in points, and the file of its detections."""

    ap: float
    detections: BundleName


class LadderRecord(_Record):
    """
    Where AP was lost: AP in points by stage, at the spec's ladder batch.

    The fields are what `support.measurements.accuracy.stage_ap` takes: `stages` lead from the checkpoint to the ONNX
    that is deployed, `edited` is the graph that keeps its -inf Pads before and after their edit, `compiled` the ONNX
    and the model compiled from it (empty if it is deployed as it is).
    """

    stages: Mapping[str, float]
    edited: Mapping[str, float] = {}
    compiled: Mapping[str, float] = {}
    pads_kept: bool


class SelfTestRecord(_Record):
    """
    How the last whole self-test in the same store of artifacts ended.

    `same_code` says whether it tested the code and specs of this run; if not, it says little about it. `faults` and
    `clean_runs` are counted, `missed` and `false_alarms` named.
    """

    ended: AwareDatetime
    same_code: bool
    full: bool
    faults: NotNegative
    missed: tuple[str, ...]
    clean_runs: NotNegative
    false_alarms: tuple[str, ...]


class SealedFile(_Record):
    """Size and hash of a file of the bundle."""

    bytes: NotNegative
    sha256: Sha256


class EvidenceDocument(_Record):
    """
    Everything a run shows, as ``evidence.json`` holds it.

    Parameters
    ----------
    release : ReleaseVerdict
        The verdict, with every clause.
    session_reasons : tuple of str
        Reasons of the session as a whole, such as ``simulated``; those of clauses come from the clauses.
    spec : AcceptanceSpec
        The whole spec, limits with their sources.
    spec_digest : str
        Its digest.
    precision : {"full", "mixed"}
        What the candidate computed in.
    passes : mapping of int to PassRecord
        The candidate by batch size.
    checkpoint, dataset, reference, ladder : record or None
        None if the run ended before they were known, or did not need them.
    localisation : Localisation or None
        Where a red accuracy comes from; it judges nothing.
    selftest : SelfTestRecord or None
        What the gate itself was tested by; it judges nothing.
    models : tuple of ModelRecord
        Artifacts of all stages and batch sizes.
    truth : str or None
        Name of the file with the ground truth.
    waivers : tuple of Waiver
        What was waived.
    files : mapping of str to SealedFile
        Every other file of the bundle; filled in when it is written.
    """

    schema_version: Literal[1] = 1
    release: ReleaseVerdict
    session_reasons: tuple[str, ...] = ()
    asked: AskedFor
    spec: AcceptanceSpec
    spec_digest: Sha256
    precision: Precision
    environment: Environment
    code: CodeRecord
    started: AwareDatetime
    ended: AwareDatetime
    checkpoint: CheckpointRecord | None = None
    dataset: DatasetRecord | None = None
    truth: BundleName | None = None
    models: tuple[ModelRecord, ...] = ()
    passes: Mapping[PositiveInt, PassRecord] = {}
    reference: ReferenceRecord | None = None
    ladder: LadderRecord | None = None
    localisation: Localisation | None = None
    selftest: SelfTestRecord | None = None
    waivers: tuple[Waiver, ...] = ()
    files: Mapping[BundleName, SealedFile] = {}

    @property
    def simulated(self) -> bool:
        """Whether the device was simulated."""
        return bool(self.environment.simulation)

    @model_validator(mode="after")
    def _consistent(self) -> EvidenceDocument:
        if self.spec.digest != self.spec_digest:
            raise ValueError(f"spec_digest is {self.spec_digest}, the spec has {self.spec.digest}")
        unknown = sorted(set(self.session_reasons) - REASONS.keys())
        if unknown:
            raise ValueError(f"session_reasons: unknown {', '.join(unknown)}")
        for batch, record in self.passes.items():
            if record.timing is not None and record.timing.batch != batch:
                raise ValueError(f"passes.{batch}: timed at batch {record.timing.batch}")
        return self


def pass_name(batch: int) -> str:
    """Name of the file with the candidate's detections at a batch size."""
    return f"detections/bs{batch}.npz"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``evidence.json``."""
    schema = EvidenceDocument.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_with_special_numbers(schema)}


def _with_special_numbers(node: Any) -> Any:
    # pydantic writes NaN and infinities as strings and does not say so in its schema.
    if isinstance(node, list):
        return [_with_special_numbers(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "number":
        return {"anyOf": [node, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
    return {key: _with_special_numbers(value) for key, value in node.items()}


def schema_text() -> str:
    """Return the schema as the committed file ``support/evidence/schema.json`` has it."""
    return json.dumps(json_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
