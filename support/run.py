"""One run: everything a session builds and measures, lazily and once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from support.artifacts import Artifact, ArtifactStore, Recipe
from support.ascend.file_route import file_route_pass
from support.ascend.host import AscendHost
from support.ascend.om_facts import OmFacts
from support.backends.onnx_runtime import OnnxCpuBackend
from support.bins import check_bins, write_bins
from support.candidate import BuiltModels, Stage, given_model, pads_edited
from support.capabilities import CPU, Capabilities
from support.clauses import Precision
from support.climb import climb
from support.code import measuring_code
from support.dataset import CocoDataset, open_dataset
from support.deadline import deadline
from support.detections import Decoder, Detections
from support.devices import Devices
from support.engine import Pass, Plan, repeated_image, run_pass
from support.errors import ContractViolationError, NotFiniteError
from support.feed import Feed, build_feed
from support.heads import Heads
from support.inputs import InputFormat
from support.measurements.tensors import slot_error
from support.memory import Memory, recalled, remembered
from support.onnx_files import load_onnx
from support.options import RunOptions
from support.passes import read_pass, write_pass
from support.progress import Progress
from support.reference import (
    Reference,
    model_digest,
    open_reference,
    publish_reference,
    require_same_world,
    write_reference,
)
from support.result_files import find_results, results_pass
from support.rungs import rung_order
from support.scoring import ApFigures, check_scorable, score
from support.shards import run_on_devices
from support.spec import AcceptanceSpec
from support.steadiness import WarmUp
from support.timing import PassTiming, RepeatSamples

if TYPE_CHECKING:
    import onnx

    from support.backends.base import Backend, TensorInfo
    from support.checkpoint import Checkpoint

__all__ = ["Images", "Recheck", "Run"]

#: Images in one PyTorch call: enough to use the cores, small enough for any host.
REFERENCE_BATCH = 4
#: What decides the numbers of the checkpoint in PyTorch.
REFERENCE_TOOLS = ("torch", "torchvision", "effdet", "timm", "numpy")
#: Images whose result files lie on the disk at a time: 5.5 GB of them.
CHUNK_IMAGES = 256


class Images(NamedTuple):
    """How many images a measurement covers, and how many a complete one does."""

    covered: int
    expected: int


class Recheck(NamedTuple):
    """
    An independent second pass over some images, and one of them repeated.

    `slot_error` is the largest difference among slots that hold the same image, in logits.
    """

    detections: Detections
    slot_error: float
    repeats: RepeatSamples


class Run:
    """
    Everything of one session.

    Every part is built or measured when it is first asked for and remembered, failures too. Passes of the candidate
    are measured anew in every session and shared among its workers through `session_folder`; what depends on the
    checkpoint alone is kept in the store of artifacts, under a key that covers the code that measured it.

    Parameters
    ----------
    options : RunOptions
        What the user asked for.
    spec : AcceptanceSpec
        What is required.
    capabilities : Capabilities
        What the machine can do.
    session_folder : Path
        For passes of this session.
    progress : Progress
        Told of everything that takes long.
    host : AscendHost
        Where the tools for NPUs are.
    """

    def __init__(
        self,
        options: RunOptions,
        spec: AcceptanceSpec,
        capabilities: Capabilities,
        session_folder: Path,
        progress: Progress,
        host: AscendHost,
    ) -> None:
        self.memory: Memory = {}
        self.options, self.spec, self.capabilities, self.progress = options, spec, capabilities, progress
        self.store = ArtifactStore(options.artifacts, lock_seconds=spec.timeouts.lock)
        self.built = BuiltModels(self.store, lambda: self.checkpoint, spec, progress)
        self._session = ArtifactStore(session_folder, lock_seconds=spec.timeouts.lock)
        self.devices = Devices(options, spec, capabilities, host, session_folder)
        self._decoder = Decoder(spec.model)

    # --- data

    @property
    @remembered
    def whole_dataset(self) -> CocoDataset:
        """The evaluation set as the spec names it, whatever part of it this run uses."""
        return open_dataset(self.options.coco_root or Path(self.spec.dataset.root), self.spec.dataset)

    @property
    @remembered
    def dataset(self) -> CocoDataset:
        """The images of this run."""
        limit = self.options.limit
        return self.whole_dataset if limit is None else self.whole_dataset.limited(limit)

    @property
    @remembered
    def feed(self) -> Feed:
        """Network inputs of the images of this run."""
        return build_feed(self.store, self.dataset, InputFormat.from_model(self.spec.model), self.progress)

    @property
    def images(self) -> Images:
        """How many images this run covers, and how many a complete one does."""
        return Images(len(self.dataset.images), self.spec.dataset.image_count)

    def write_bins(self) -> None:
        """Write and check the guide's input files where ``--write-bins`` wants them."""
        if self.options.write_bins is not None:
            write_bins(self.feed, self.dataset, self.options.write_bins, self.progress)
            check_bins(self.feed, self.dataset, self.options.write_bins)

    def require_dataset(self) -> None:
        """Raise what keeps the data from being used, if anything does."""
        _ = self.dataset

    def score(self, detections: Detections) -> ApFigures:
        """Check that detections are fit for scoring, and score them."""
        check_scorable(detections, [image.id for image in self.dataset.images], self.spec.model)
        return score(self.dataset.truth, detections, self.options.scorer)

    # --- the checkpoint

    @property
    @remembered
    def checkpoint(self) -> Checkpoint:
        """The weights."""
        from support.checkpoint import load_checkpoint

        path = self.options.checkpoint or Path(self.spec.checkpoint.path)
        return load_checkpoint(path, self.spec.model, self.spec.checkpoint)

    @property
    @remembered
    def reference(self) -> Reference:
        """What the checkpoint detects: the bundle given, else measured here and kept."""
        if self.options.reference is None:
            return open_reference(self._measured_reference().path)
        reference = open_reference(self.options.reference)
        # The models built here come from the checkpoint that is here, which need not be the one the spec pins.
        here = self.checkpoint if self.options.mode == "build" else self.spec.checkpoint
        require_same_world(reference, self.spec, self.whole_dataset, here.sha256)
        return reference

    def _measured_reference(self) -> Artifact:
        facts = {
            "spec_name": self.spec.name,
            "spec_version": self.spec.version,
            "model_digest": model_digest(self.spec.model),
            "checkpoint_sha256": self.checkpoint.sha256,
            "checkpoint_known_as": self.checkpoint.known_as,
            "annotation_digest": self.dataset.annotation_digest,
            "size_digest": self.dataset.size_digest,
        }
        recipe = Recipe(
            "reference",
            1,
            inputs={"checkpoint": self.checkpoint.sha256, "feed": self.feed.digest, "code": measuring_code()},
            options={**facts, "golden": self.spec.accuracy.golden_images},
            tools=self.tools(*REFERENCE_TOOLS),
        )
        return self.store.get(recipe, "bundle", lambda folder: self._write_reference(folder, facts))

    def _write_reference(self, folder: Path, facts: Mapping[str, str]) -> Mapping[str, Any]:
        measured = self._checkpoint_pass(range(len(self.feed)), "checkpoint in PyTorch")
        ids, checksums = self.feed.image_ids.tolist(), self.feed.checksums.tolist()
        found = {
            "runtime": self.tools(*REFERENCE_TOOLS),
            "input_checksums": dict(zip(ids, checksums, strict=True)),
            "golden_ids": tuple(ids[: self.spec.accuracy.golden_images]),
            "ap": self.score(measured.detections).ap,
        }
        write_reference(folder, measured.detections, measured.golden, {**facts, **found})
        return {"ap": found["ap"]}

    def _checkpoint_pass(self, rows: Sequence[int], title: str) -> Pass:
        from support.backends.torch_eager import TorchBackend
        from support.checkpoint import build_model

        network = build_model(self.checkpoint, self.spec.model)
        with TorchBackend(network, self.spec.model, REFERENCE_BATCH) as backend:
            plan = self._plan(rows, title, CPU, warm_up_calls=0)
            return run_pass(self.feed, backend, self._decoder, self.spec.model, plan, self.progress)

    def record_reference(self) -> None:
        """Write the bundle where ``--record-reference`` wants it, with the hashes of all models of this checkpoint."""
        if self.options.record_reference is not None:
            models = {f"bs{batch}": self.built.modified(batch).sha256 for batch in self.spec.batch_sizes}
            publish_reference(self.reference, self.options.record_reference, models)

    # --- the candidate

    @remembered
    def deployed_onnx(self, batch: int) -> Artifact:
        """Return the ONNX model that is deployed as it is, or compiled, at a batch size."""
        return given_model(self.options.onnx, batch) if self.options.onnx else self.built.modified(batch)

    @remembered
    def model(self, batch: int) -> Artifact:
        """Return the model under test at a batch size."""
        if self.options.om:
            return given_model(self.options.om, batch, "om")
        if self.options.on_npu:
            return self.devices.ascend.compile(self.store, self.deployed_onnx(batch), batch, self.progress)
        return self.deployed_onnx(batch)

    @remembered
    def onnx(self, batch: int) -> onnx.ModelProto:
        """Read the ONNX that is deployed at a batch size."""
        return load_onnx(self.deployed_onnx(batch).path)

    @remembered
    def om_facts(self, batch: int) -> OmFacts | None:
        """Return what atc tells about the compiled model; None where there is no atc."""
        return self.devices.ascend.facts(self.model(batch))

    @remembered
    def pads_kept(self, batch: int) -> bool:
        """
        Whether the Pads of the model under test were edited rather than folded away.

        A prebuilt .om whose operators nobody can list may have kept them.
        """
        if self.options.mode != "om":
            return pads_edited(self.onnx(batch))
        facts = self.om_facts(batch)
        return facts is None or any(kind.startswith("Pad") for kind in facts.operators)

    def row_of(self, image_id: int) -> int:
        """Row of an image in the feed."""
        return list(self.feed.image_ids).index(image_id)

    def overflow(self, row: int) -> str:
        """Name the operator that half precision cannot hold on one image, if any; asked only when something is red."""
        from support.ascend.overflow import overflowing

        if not self.options.on_npu or self.options.mode not in ("build", "onnx"):
            return ""
        # At the smallest batch size there is: every operator is watched, which takes a multiple of the memory.
        batch = (self.spec.batch_sizes if self.options.mode == "build" else self.options.batches(self.spec))[0]
        found = overflowing(self.onnx(batch), self.feed.tensors([row] * batch), self.spec.atc.kept_types)
        return str(found[0]) if found else ""

    @property
    def precision(self) -> Precision:
        """Whether the candidate computes in float32 throughout, or as mixed precision lowers it."""
        return self.spec.atc.precision if self.options.on_npu else "full"

    @remembered
    def loaded(self, batch: int) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
        """Return input and outputs of the model under test, as the runtime describes them."""
        with self.devices.opened(self.model(batch), batch) as (backend,):
            return backend.input, backend.outputs

    @remembered
    def candidate(self, batch: int) -> Pass:
        """Run the candidate over all images of this run."""
        if self.options.results:
            return self._pass_from_results(self.options.results, batch)
        try:
            return self._session_pass("pass", batch, lambda: self._measured(batch))
        except NotFiniteError as error:
            suspect = "" if error.row is None else self.overflow(error.row)
            raise ContractViolationError(error.found, required=error.required, remedy=suspect or error.remedy) from None

    @remembered
    def timed(self, batch: int) -> Pass:
        """Run the candidate over all images on one device alone; the same pass, unless several devices share it."""
        if not self.devices.several:
            return self.candidate(batch)
        return self._session_pass("timed", batch, lambda: self._run_on_devices(batch, "timed", every=False))

    @remembered
    def look(self, batch: int, number: int) -> PassTiming:
        """Time a pass like `timed` once more; `number` tells the looks of a session apart, from 2 up."""
        what = f"look {number}"
        by_files = self.options.route == "files"
        return self._session_pass(
            what.replace(" ", "-"),
            batch,
            lambda: self._pass_by_files(batch) if by_files else self._run_on_devices(batch, what, every=False),
        ).timing

    def _session_pass(self, kind: str, batch: int, measure: Callable[[], Pass]) -> Pass:
        recipe = Recipe(kind, 1, inputs={"model": self.model(batch).sha256}, options={"batch": batch})
        artifact = self._session.get(recipe, "pass", lambda folder: write_pass(folder, measure()))
        return read_pass(artifact.path)

    def _measured(self, batch: int) -> Pass:
        return self._pass_by_files(batch) if self.options.route == "files" else self._run_on_devices(batch)

    def _run_on_devices(self, batch: int, what: str = "", *, every: bool = True) -> Pass:
        title = f"{self.options.device}, batch {batch}{f', {what}' if what else ''}"
        plan = self._plan(range(len(self.feed)), title)
        watch = self.devices.watch()
        with self.devices.opened(self.model(batch), batch, every=every) as backends:
            if not what:
                # With the model that is open already: an NPU takes longer to load it than to climb.
                self._climb(backends[0], batch)
            with watch:
                measured = run_on_devices(self.feed, backends, self._decoder, self.spec.model, plan, self.progress)
        return replace(measured, timing=replace(measured.timing, load=watch.samples))

    def _climb(self, backend: Backend, batch: int) -> None:
        if self.options.rungs == "off":
            return

        def look(image_ids: Sequence[int]) -> Detections:
            rows = [self.row_of(image_id) for image_id in image_ids]
            title = f"{self.options.device}, batch {batch}, rung of {len(rows)} images"
            plan = self._plan(rows, title, warm_up_calls=0)
            return run_pass(self.feed, backend, self._decoder, self.spec.model, plan, self.progress).detections

        climb(
            rung_order(self.dataset, self.spec.model.image_size),
            batch,
            self.spec,
            candidate=look,
            reference=self._reference_of,
            overflow=lambda image_id: self.overflow(self.row_of(image_id)),
        )

    def _reference_of(self, image_ids: Sequence[int]) -> Detections:
        # The whole reference takes minutes of PyTorch, which a hopeless candidate does not need.
        if self.options.reference is not None or recalled(self, "reference") is not None:
            return self.reference.detections.select(image_ids)
        # What the first rung sees is kept apart; of the other images the second sees more or less by batch size.
        order, rules = rung_order(self.dataset, self.spec.model.image_size), self.spec.rungs
        most = rules.images if len(image_ids) <= rules.images else int(len(order) * rules.share)
        return self._early_reference(order[:most]).select(image_ids)

    def _early_reference(self, image_ids: Sequence[int]) -> Detections:
        recipe = Recipe(
            "early_reference",
            1,
            inputs={"checkpoint": self.checkpoint.sha256, "feed": self.feed.digest, "code": measuring_code()},
            options={"model": model_digest(self.spec.model), "images": list(image_ids)},
            tools=self.tools(*REFERENCE_TOOLS),
        )
        rows = [self.row_of(image_id) for image_id in image_ids]
        title = f"checkpoint in PyTorch, {len(rows)} images"
        artifact = self.store.get(recipe, "pass", lambda folder: write_pass(folder, self._checkpoint_pass(rows, title)))
        return read_pass(artifact.path).detections

    def _pass_by_files(self, batch: int) -> Pass:
        npu = self.devices.ascend.npus[0]
        watch = self.devices.watch()
        with self.devices.ascend.in_use([npu]), watch:
            measured = file_route_pass(
                self.feed,
                self.devices.ascend.file_route(self.model(batch), npu, batch),
                self._decoder,
                self.spec.model,
                self._plan(range(len(self.feed)), f"{self.options.device}, batch {batch}, by files"),
                self.progress,
                folder=self.options.scratch or self._session.root,
                chunk_images=CHUNK_IMAGES,
            )
        return replace(measured, timing=replace(measured.timing, load=watch.samples))

    def _pass_from_results(self, template: str, batch: int) -> Pass:
        plan = self._plan(range(len(self.dataset.images)), f"results, batch {batch}")
        folder = find_results(template, batch, only=len(self.options.batches(self.spec)) == 1)
        return results_pass(
            folder, batch, self.dataset, self.whole_dataset, self._decoder, plan, self.spec.model, self.progress
        )

    @remembered
    def recheck(self, batch: int) -> Recheck:
        """Run some images again, independently: in another session of the runtime, in other slots, and repeated."""
        recipe = Recipe("recheck", 1, inputs={"model": self.model(batch).sha256}, options={"batch": batch})
        artifact = self._session.get(recipe, "pass", lambda folder: self._write_recheck(folder, batch))
        facts = artifact.made_by["facts"]
        repeats = RepeatSamples(tuple(facts["fresh"]), tuple(facts["repeated"]))
        return Recheck(read_pass(artifact.path).detections, facts["slot_error"], repeats)

    def _write_recheck(self, folder: Path, batch: int) -> Mapping[str, Any]:
        # Reversed, so that an image meets other neighbours in another slot, and cached outputs show.
        order = list(range(len(self.feed)))[: self.spec.throughput.comparison_images][::-1]
        title, calls = f"{self.options.device}, batch {batch}, again", 1 + self.spec.throughput.repeat_calls
        with self.devices.opened(self.model(batch), batch) as (backend,):
            plan = self._plan(order, title, warm_up_calls=0)
            measured = run_pass(self.feed, backend, self._decoder, self.spec.model, plan, self.progress)
            with deadline(self.spec.timeouts.infer_call * calls, f"{title}, one image repeated"):
                slots = repeated_image(self.feed, backend, self.spec.model, row=0, calls=calls)
            # The first call of a session does more than compute. The first on the repeated image has a new input.
            fresh, repeated = backend.samples[1 : 1 - calls], backend.samples[1 - calls :]
        return {**write_pass(folder, measured), "slot_error": slot_error(slots), "fresh": fresh, "repeated": repeated}

    # --- the stages before it, on the CPU

    @remembered
    def stage_heads(self, stage: Stage, batch: int) -> Heads:
        """Raw heads of the golden images at one stage; kept, since they depend on the checkpoint alone."""
        rows = range(min(self.spec.accuracy.golden_images, len(self.feed)))
        title = f"{stage}, batch {batch}"
        return self._kept_pass("stage_heads", self.built.stage(stage, batch), rows, title, warm_up_calls=0).golden

    @remembered
    def stage_pass(self, stage: Stage) -> Pass:
        """Run one stage over all images at the spec's ladder batch; kept, since it depends on the checkpoint alone."""
        model = self.built.stage(stage, self.spec.accuracy.ladder_batch)
        return self._kept_pass("rung", model, range(len(self.feed)), f"{stage} on the CPU")

    def _kept_pass(
        self, kind: str, model: Artifact, rows: Sequence[int], title: str, *, warm_up_calls: int | None = None
    ) -> Pass:
        recipe = Recipe(
            kind,
            1,
            inputs={"model": model.sha256, "feed": self.feed.digest, "code": measuring_code()},
            options={"model": model_digest(self.spec.model), "golden": self.spec.accuracy.golden_images},
            tools=self.tools("onnxruntime", "onnxruntime-gpu", "numpy"),
        )

        def build(folder: Path) -> Mapping[str, Any]:
            plan = self._plan(rows, title, CPU, warm_up_calls=warm_up_calls)
            with OnnxCpuBackend(model.path) as backend:
                measured = run_pass(self.feed, backend, self._decoder, self.spec.model, plan, self.progress)
            return write_pass(folder, measured)

        return read_pass(self.store.get(recipe, "pass", build).path)

    # --- how

    def _plan(self, order: Sequence[int], title: str, chip: str = "", *, warm_up_calls: int | None = None) -> Plan:
        spec, found = self.spec, {} if warm_up_calls is not None else {"steady": WarmUp(self.spec.throughput)}
        return Plan(
            order=order,
            warm_up_calls=spec.throughput.warm_up_calls if warm_up_calls is None else warm_up_calls,
            golden=spec.accuracy.golden_images,
            call_seconds=spec.timeouts.infer_call,
            title=title,
            chip=chip or self.options.device,
            **found,
        )

    def tools(self, *names: str) -> Mapping[str, str]:
        """Versions of those of some distributions that are installed."""
        packages = self.capabilities.packages
        return {name: packages[name] for name in names if name in packages}
