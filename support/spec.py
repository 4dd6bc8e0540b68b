"""The acceptance spec: every number the suite judges by, read from one TOML file and validated."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from support.clauses import CATALOGUE, RUNG_QUANTITIES, Direction, Mode, Precision, Quantity, Unit
from support.errors import SpecError
from support.plain_files import read_plain

if TYPE_CHECKING or sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["AcceptanceSpec", "Baseline", "Clause", "Limit", "load_spec", "spec_path"]

#: Bytes of a spec; ours have 30 kB.
MAX_BYTES = 2**20
SPEC_FOLDER = Path(__file__).resolve().parent.parent / "acceptance"

#: The one precision mode of atc that lowers nothing. In force_fp32, which is cube_fp16in_fp32out, convolutions prefer
#: to read half precision (atc's manual, ``--precision_mode_v2``).
FULL_PRECISION = "must_keep_origin_dtype"

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Limit(_Model):
    """
    One limit: a number, what it means, and where it comes from.

    The number is either `value`, or `reference` × `factor` so that a rule such as "within 1 % of 33.6" keeps both of
    its parts visible. `rounding` is the number of decimals the measured value is rounded to (half up) before it is
    compared. A limit of our own names in `distribution` the clean runs it was derived from.
    """

    value: float | None = Field(default=None, allow_inf_nan=False)
    reference: float | None = Field(default=None, allow_inf_nan=False)
    factor: PositiveFloat | None = None
    unit: Unit
    direction: Direction
    rounding: Annotated[int, Field(ge=0, le=6)] | None = None
    source: Text
    date: dt.date
    distribution: Text | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Limit:
        plain, derived = self.value is not None, self.reference is not None and self.factor is not None
        if plain == derived or (plain and (self.reference is not None or self.factor is not None)):
            raise ValueError("give either value, or reference and factor together")
        if self.source == "own" and not self.distribution:
            raise ValueError("a limit of our own (source = 'own') must name the distribution it comes from")
        return self

    @property
    def number(self) -> float:
        """The limit as one number, in `unit`."""
        if self.value is not None:
            return self.value
        return cast(float, self.reference) * cast(float, self.factor)


class Clause(_Model):
    """One rule: in which modes and on which chips it is required, its limits, and the first suspect when it is red."""

    title: Text
    modes: tuple[Mode, ...] = Field(min_length=1)
    chips: tuple[Text, ...] = ()
    suspect: Text
    limits: Mapping[str, Limit]


class Dataset(_Model):
    """Layout and pins of the evaluation set."""

    root: Text
    images: Text
    annotations: Text
    image_count: PositiveInt
    category_count: PositiveInt
    annotation_digest: Sha256 | None = None
    size_digest: Sha256 | None = None
    source: Text


class Checkpoint(_Model):
    """Where the weights lie and what is known about them."""

    path: Text
    sha256: Sha256 | None = None
    source: Text


class Model(_Model):
    """
    The network: architecture, input format, head layout, anchors and decoding.

    `anchor_scale` is the side of the base anchor in cells, `anchor_octaves` the number of sizes within an octave,
    `anchor_ratios` are factors of (width, height).
    """

    family: Literal["effdet"]
    architecture: Text
    image_size: Annotated[int, Field(ge=128, le=4096, multiple_of=64)]
    classes: PositiveInt
    min_level: PositiveInt
    max_level: PositiveInt
    anchor_scale: PositiveFloat
    anchor_octaves: PositiveInt
    anchor_ratios: tuple[tuple[PositiveFloat, PositiveFloat], ...] = Field(min_length=1)
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    max_points: PositiveInt
    max_detections: PositiveInt
    iou_threshold: Annotated[float, Field(gt=0, lt=1)]
    source: Text

    @property
    def anchors_per_cell(self) -> int:
        """Anchors at one place of a feature level: every size of the octave in every ratio."""
        return self.anchor_octaves * len(self.anchor_ratios)

    @field_validator("mean")
    @classmethod
    def _unit_range(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0 <= channel <= 1 for channel in value):
            raise ValueError("mean and std are fractions of 1, not grey levels of 255")
        return value

    @model_validator(mode="after")
    def _has_levels(self) -> Model:
        if self.min_level > self.max_level:
            raise ValueError(f"min_level {self.min_level} is above max_level {self.max_level}")
        return self


class Graph(_Model):
    """What the exported graph must look like."""

    opset: PositiveInt
    input_name: Text
    allowed_operators: tuple[Text, ...] = Field(min_length=1)
    allowed_operators_source: Text


class Atc(_Model):
    """Options of the Ascend compiler, as in the guide."""

    framework: PositiveInt
    input_format: Text
    precision_mode: Text
    log: Text
    modify_mixlist: Mapping[str, Mapping[str, tuple[str, ...]]]
    source: Text

    @property
    def precision(self) -> Precision:
        """Whether the compiler may lower operators to half precision."""
        return "full" if self.precision_mode == FULL_PRECISION else "mixed"

    @property
    def kept_types(self) -> tuple[str, ...]:
        """Types of operators that must compute in float32, as the compiler names them."""
        return self.modify_mixlist.get("black-list", {}).get("to-add", ())


class Accuracy(_Model):
    """
    Figures the accuracy clauses refer to, in AP points.

    Two detections of the same object differ if their scores are more than `score_tolerance` apart, or an edge of their
    boxes more than `box_tolerance` (image pixels). An image or a class differs if more than `different_share` of its
    detections do; those with fewer than `different_minimum` are not judged so.
    """

    quoted_ap: Annotated[float, Field(gt=0, le=100)]
    quoted_tolerance: PositiveFloat
    measured_drop: Literal["required", "when-reference-matches-quote"]
    ladder_batch: PositiveInt
    golden_images: PositiveInt
    score_floor: Annotated[float, Field(gt=0, lt=1)]
    match_iou: Annotated[float, Field(gt=0, lt=1)]
    score_tolerance: Annotated[float, Field(gt=0, lt=1)]
    box_tolerance: PositiveFloat
    different_share: Annotated[float, Field(gt=0, lt=1)]
    different_minimum: PositiveInt
    guard_minimum_objects: PositiveInt
    guard_change_rate: Annotated[float, Field(gt=0, lt=1)]
    source: Text


class Throughput(_Model):
    """
    How throughput is measured and which published table each comparison uses.

    The tolerances (score, and image pixels) are what two passes over the same image may differ by; those of models in
    mixed precision are wider, since another slot of a batch may round another way. There rounding can also decide which
    of two boxes is kept, so up to `mixed_repeat_share` of the detections of an image may differ by more.

    `confidence` is that of the intervals that are shown. A comparison is judged so that noise turns it into the wrong
    verdict with at most the probability `error_budget`, over `looks` passes in all. A warm-up has at least
    `warm_up_calls` calls, and ends when times are steady to `steady_change`, or after `warm_up_most`. Intervals come
    from at most `blocks` blocks of a pass, each at least `block_times` autocorrelation times long. One image is
    repeated in `repeat_calls` calls. Clocks that contradict each other by more than `clock_tolerance` are wrong, and a
    throughput above `plausible` times the published one of the same chip must be shown to be real.
    """

    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    error_budget: Annotated[float, Field(gt=0, lt=0.5)]
    looks: PositiveInt
    blocks: Annotated[int, Field(ge=2)]
    block_times: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    warm_up_calls: PositiveInt
    warm_up_most: PositiveInt
    steady_change: Annotated[float, Field(gt=0, lt=1)]
    minimum_calls: PositiveInt
    repeat_calls: PositiveInt
    clock_tolerance: Annotated[float, Field(gt=0, lt=1)]
    plausible: Limit
    comparison_images: PositiveInt
    repeat_score_tolerance: PositiveFloat
    repeat_box_tolerance: PositiveFloat
    mixed_repeat_score_tolerance: PositiveFloat
    mixed_repeat_box_tolerance: PositiveFloat
    mixed_repeat_share: Annotated[float, Field(gt=0, lt=1)]
    baseline_310: Text
    baseline_t4: Text
    same_chip: Mapping[str, str]
    source: Text

    @property
    def judged_confidence(self) -> float:
        """
        Confidence of the two-sided interval that one look is judged on.

        All looks share the budget in equal parts, and a verdict is wrong only if one of their intervals is. This is
        Bonferroni's inequality, which holds however the looks depend on each other (O. J. Dunn, *Multiple Comparisons
        among Means*, Journal of the American Statistical Association 56, 1961).
        """
        return 1 - self.error_budget / self.looks

    @model_validator(mode="after")
    def _ends(self) -> Throughput:
        if self.warm_up_most < self.warm_up_calls:
            raise ValueError(f"warm_up_most {self.warm_up_most} is below warm_up_calls {self.warm_up_calls}")
        return self


class Rungs(_Model):
    """
    Early looks at a candidate on a few images, which may reject it before the pass over all of them.

    The first is at `images` images, the second at as many more as `share` leaves, the part of a pass that both together
    may cost; a rung that would cost more is left out. An image is *ruined* if more than `image_share` of its
    detections differ from the reference's and there are at least `image_detections`. `first` and `second` hold the
    limits.
    """

    images: PositiveInt
    share: Annotated[float, Field(gt=0, lt=1)]
    image_detections: PositiveInt
    image_share: Annotated[float, Field(gt=0, lt=1)]
    source: Text
    first: Mapping[str, Limit]
    second: Mapping[str, Limit]


class Timeouts(_Model):
    """Seconds after which a step counts as hung."""

    probe: PositiveFloat
    export: PositiveFloat
    compile: PositiveFloat
    load: PositiveFloat
    infer_call: PositiveFloat
    lock: PositiveFloat
    source: Text


class Baseline(_Model):
    """
    A published throughput table with its passport: how it was measured, not only what came out.

    `images_per_second` maps batch size to throughput.
    """

    chip: Text
    runtime: Text
    timer: Text
    includes_copies: bool
    precision: Text
    input: Text
    warm_up: Text
    count: Text
    driver: Text
    date: dt.date
    source: Text
    images_per_second: Mapping[PositiveInt, PositiveFloat] = Field(min_length=1)

    @property
    def best(self) -> float:
        """The highest throughput of the table, in images per second."""
        return max(self.images_per_second.values())


class AcceptanceSpec(_Model):
    """A whole spec, frozen. `digest` identifies its content whatever its formatting."""

    name: Text
    title: Text
    version: Text
    published: bool
    batch_sizes: tuple[PositiveInt, ...] = Field(min_length=1)
    batch_sizes_source: Text
    model: Model
    checkpoint: Checkpoint
    dataset: Dataset
    graph: Graph
    atc: Atc
    accuracy: Accuracy
    throughput: Throughput
    rungs: Rungs
    timeouts: Timeouts
    baselines: Mapping[str, Baseline]
    clauses: Mapping[str, Clause]
    #: Decided when the file is read: later it may be gone, or another.
    _of_this_suite: bool = PrivateAttr(default=False)

    @model_validator(mode="after")
    def _consistent(self) -> AcceptanceSpec:
        _require_catalogue(self.clauses)
        for rung in ("first", "second"):
            _require_quantities(f"rungs.{rung}", getattr(self.rungs, rung), RUNG_QUANTITIES)
        _require_batches(self)
        _require_baselines(self)
        _require_chips(self)
        return self

    @property
    def of_this_suite(self) -> bool:
        """Whether it was read from ``acceptance/``."""
        return self._of_this_suite

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the spec."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def required(
        self, *, mode: Mode, chip: str, scopes: frozenset[str], comparing: bool = False
    ) -> tuple[tuple[str, int | None], ...]:
        """
        Name every clause that this run must measure.

        Parameters
        ----------
        mode : {"build", "onnx", "om", "results"}
            Where the candidate comes from.
        chip : str
            Chip under test; clauses that list chips are required on those only.
        scopes : frozenset of str
            ``{"gate", "throughput"}`` for the whole gate, ``{"throughput"}`` for throughput alone.
        comparing : bool
            Whether a comparison with saved runs was asked for.

        Returns
        -------
        required : tuple of (clause name, batch size or None)
            Computed from the spec alone, never from the tests that were collected.
        """
        found: list[tuple[str, int | None]] = []
        for name, clause in self.clauses.items():
            kind = CATALOGUE[name]
            applies = mode in clause.modes and kind.scope in scopes and (not clause.chips or chip in clause.chips)
            if not applies or (kind.comparing and not comparing):
                continue
            found += [(name, batch) for batch in (self.batch_sizes if kind.per_batch else (None,))]
        return tuple(found)


def _require_catalogue(clauses: Mapping[str, Clause]) -> None:
    _same_names("clauses", clauses, CATALOGUE)
    for name, clause in clauses.items():
        _require_quantities(f"clauses.{name}.limits", clause.limits, CATALOGUE[name].quantities)


def _require_quantities(where: str, limits: Mapping[str, Limit], quantities: Mapping[str, Quantity]) -> None:
    _same_names(where, limits, quantities)
    for key, quantity in quantities.items():
        limit = limits[key]
        if (limit.unit, limit.direction) != (quantity.unit, quantity.direction):
            raise ValueError(
                f"{where}.{key} is a {limit.direction} in {limit.unit!r}; "
                f"it is measured as a {quantity.direction} in {quantity.unit!r}"
            )


def _same_names(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    missing, unknown = sorted(known.keys() - given.keys()), sorted(given.keys() - known.keys())
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")


def _require_batches(spec: AcceptanceSpec) -> None:
    if list(spec.batch_sizes) != sorted(set(spec.batch_sizes)):
        raise ValueError(f"batch_sizes: {list(spec.batch_sizes)} must be ascending and without repeats")
    if spec.accuracy.ladder_batch not in spec.batch_sizes:
        raise ValueError(f"accuracy.ladder_batch: {spec.accuracy.ladder_batch} is not one of batch_sizes")


def _require_baselines(spec: AcceptanceSpec) -> None:
    wanted = {
        "throughput.baseline_310": ("310", spec.throughput.baseline_310),
        "throughput.baseline_t4": ("T4", spec.throughput.baseline_t4),
        **{f"throughput.same_chip.{chip}": (chip, name) for chip, name in spec.throughput.same_chip.items()},
    }
    for key, (chip, name) in wanted.items():
        baseline = spec.baselines.get(name)
        if baseline is None:
            raise ValueError(f"{key}: no baseline is named {name!r}; known are {', '.join(sorted(spec.baselines))}")
        if baseline.chip != chip:
            raise ValueError(f"{key}: baseline {name!r} is of a {baseline.chip}, not of a {chip}")
        missing = set(spec.batch_sizes) - baseline.images_per_second.keys()
        if missing:
            raise ValueError(f"baselines.{name}.images_per_second: no figure for batch {sorted(missing)}")


def _require_chips(spec: AcceptanceSpec) -> None:
    # A misspelt chip would keep its clause from ever being required.
    for name, clause in spec.clauses.items():
        unknown = [chip for chip in clause.chips if chip not in spec.throughput.same_chip]
        if unknown:
            known = ", ".join(spec.throughput.same_chip)
            raise ValueError(f"clauses.{name}.chips: unknown {', '.join(unknown)}; throughput.same_chip has {known}")


def spec_path(name_or_path: str) -> Path:
    """
    Find a spec by name in ``acceptance/`` or by path.

    Raises
    ------
    SpecError
        If there is no such file; the message lists the known names.
    """
    as_path = Path(name_or_path)
    path = as_path if as_path.suffix == ".toml" else SPEC_FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SPEC_FOLDER.glob("*.toml")))
        raise SpecError(f"no spec {name_or_path!r}", required=f"a path ending in .toml, or one of: {known}")
    return path


def load_spec(name_or_path: str) -> AcceptanceSpec:
    """
    Read and validate a spec.

    A spec may name another in ``extends``, by name or by a path relative to its own folder; its tables are then laid
    over those of the other.

    Parameters
    ----------
    name_or_path : str
        A name such as ``efficientdet_d0``, or the path of a TOML file.

    Raises
    ------
    SpecError
        If the file is missing, is not TOML, has an unknown or missing key, a wrong unit or an impossible value; the
        message names file and key.
    """
    path = spec_path(name_or_path)
    try:
        spec = AcceptanceSpec.model_validate(_read_tables(path, seen=()))
    except ValidationError as error:
        raise SpecError(f"{path}: {_describe(error)}", remedy="compare with acceptance/efficientdet_d0.toml") from None
    spec._of_this_suite = path.resolve().parent == SPEC_FOLDER
    return spec


def _read_tables(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise SpecError(f"{path}: extends: the specs extend each other in a circle")
    try:
        tables = tomllib.loads(read_plain(path, MAX_BYTES).decode("utf-8"))
    # Not every number and nesting that TOML allows can be read; what is raised then is no TOMLDecodeError.
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not a readable TOML file: {error}") from error
    base = tables.pop("extends", None)
    if base is None:
        return tables
    if not isinstance(base, str):
        raise SpecError(f"{path}: extends: {base!r} must be the name of a spec")
    try:
        below = spec_path(str(path.parent / base) if base.endswith(".toml") else base)
    except SpecError as error:
        raise SpecError(f"{path}: extends: {error.found}", required=error.required) from None
    return _laid_over(_read_tables(below, (*seen, path.resolve())), tables)


def _laid_over(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and not _OF_ONE_SOURCE & {*below, *value}:
            merged[key] = _laid_over(below, value)
        else:
            merged[key] = value
    return merged


#: What tells a limit and a baseline from other tables. Each is replaced whole: half of an inherited one must not
#: survive beside a new number or source.
_OF_ONE_SOURCE = {"unit", "images_per_second"}


def _describe(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False)[:5]:
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        found = "" if isinstance(item["input"], (dict, BaseModel)) else f" (found {item['input']!r})"
        problems.append(f"{key}: {message}{found}" if key else message)
    return "; ".join(problems)
