"""Small worlds of evidence: a few scenes of the kit, detections near their objects, and every clause judged on them."""

import datetime as dt
import json
from functools import cached_property
from pathlib import Path

import numpy as np

from support.agreement import match
from support.clauses import CATALOGUE
from support.dataset import GroundTruth
from support.detections import Detections
from support.evidence.bundle import write_bundle
from support.evidence.model import (
    REFERENCE,
    TRUTH,
    AskedFor,
    CheckpointRecord,
    CodeRecord,
    DatasetRecord,
    Environment,
    EvidenceDocument,
    LadderRecord,
    ModelRecord,
    PassRecord,
    ReferenceRecord,
    pass_name,
)
from support.evidence.truth import truth_digests
from support.measurements import accuracy, agreement, data
from support.measurements.accuracy import ScoredPass
from support.scoring import score
from support.spec import AcceptanceSpec, load_spec
from support.speed import Speed
from support.timing import CallSample, PassTiming, RepeatSamples
from support.verdict import Measurement, judge, release_verdict

KIT = Path(__file__).resolve().parents[2] / "fixtures/data/shapes"
IMAGES = 24
TIMERS = {
    "cpu": ("wall time of session.run", True),
    "T4": ("wall time of session.run, copies included", True),
    "310": ("NPU_compute_time: aclmdlExecute, device compute only", False),
    "310P3": ("NPU_compute_time: aclmdlExecute, device compute only", False),
}
STARTED = dt.datetime(2026, 11, 24, 8, 0, tzinfo=dt.timezone.utc)


def truth(images=IMAGES):
    coco = json.loads((KIT / "annotations/instances_val2017.json").read_text())
    for row in coco["annotations"]:
        row["bbox"], row["area"] = [float(side) for side in row["bbox"]], float(row["area"])
    tables = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
        "categories": ("id", "name"),
    }
    kept = {table: [{key: row[key] for key in keys} for row in coco[table]] for table, keys in tables.items()}
    whole = GroundTruth(kept, tuple(sorted(row["id"] for row in kept["categories"])))
    return whole.limited(sorted(row["id"] for row in kept["images"])[:images])


def found(ground, seed=0, spread=0.5):
    """Detect every object, with boxes and scores that differ a little from seed to seed."""
    noise = np.random.default_rng(seed)
    rows = [row for row in ground.coco["annotations"] if not row["iscrowd"]]
    boxes = np.array([row["bbox"] for row in rows])
    boxes[:, 2:] += boxes[:, :2]
    boxes += noise.normal(0, spread, boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    return Detections(
        images=np.array(sorted(image["id"] for image in ground.coco["images"]), np.int64),
        image_ids=np.array([row["image_id"] for row in rows], np.int64),
        boxes=boxes.astype(np.float32),
        scores=np.linspace(0.9, 0.3, len(rows), dtype=np.float32),
        category_ids=np.array([row["category_id"] for row in rows], np.int32),
        anchors=np.zeros(len(rows), np.int32),
    )


def the_spec(images=IMAGES, **changes):
    """Return the kit's spec for fewer images and batch sizes, with what clean detections reach as its quote."""
    spec = load_spec("shapes_d0").model_dump(mode="json")
    spec |= {"batch_sizes": [1, 8], "name": "small_d0"}
    spec["dataset"] |= {"image_count": images, "annotation_digest": None, "size_digest": None}
    spec["clauses"]["dataset_pins"]["limits"]["images"]["value"] = images
    spec["clauses"]["reference_ap"]["limits"]["ap_difference"]["value"] = 10.0
    spec["accuracy"] |= {"quoted_ap": 90.0, "quoted_tolerance": 10.0, "guard_minimum_objects": 5}
    for key, value in changes.items():
        *path, last = key.split("__")
        node = spec
        for part in path:
            node = node[part]
        node[last] = value
    return AcceptanceSpec.model_validate(spec)


class World:
    """A run as one might have been, and the evidence of it."""

    def __init__(
        self, chip="cpu", *, spec=None, images=IMAGES, seconds=0.02, simulation="", seed=0, mode="om", ground=None
    ):
        self.chip, self.spec, self.simulation, self.mode = chip, spec or the_spec(images), simulation, mode
        self.truth = ground or truth(images)
        self.passes = {batch: found(self.truth, seed) for batch in self.spec.batch_sizes}
        self.reference = found(self.truth, seed)
        timer, copies = TIMERS[chip]
        self.timings = {
            batch: PassTiming(
                chip,
                batch,
                self._calls(batch, seconds),
                (seconds,),
                timer,
                copies,
                repeats=self._repeats(batch, seconds),
            )
            for batch in self.spec.batch_sizes
        }

    def _calls(self, batch, seconds):
        images = len(self.truth.coco["images"])
        tails = [min(batch, images - start) for start in range(0, images, batch)]
        return tuple(CallSample(seconds * batch * (1 + place % 2 / 1000), tail) for place, tail in enumerate(tails))

    def _repeats(self, batch, seconds):
        calls = self.spec.throughput.repeat_calls
        return RepeatSamples((seconds * batch,) * calls, (seconds * batch,) * calls)

    @property
    def required(self):
        scopes = frozenset({"gate", "throughput"})
        return self.spec.required(mode=self.mode, chip=self.chip, scopes=scopes)

    def scored(self, detections):
        return ScoredPass(detections, score(self.truth, detections, "hotcoco"))

    @property
    def speed(self):
        def passes(batch, looks):
            timing = self.timings[batch]
            return timing.looks(looks) if looks <= len(timing.passes) else None

        images = self.spec.dataset.image_count
        return Speed(self.spec, self.chip, images, self.spec.batch_sizes, passes, lambda batch: True)

    def measured(self, name, batch):
        spec, images = self.spec, len(self.truth.coco["images"])
        counts, reference = (images, spec.dataset.image_count), self.scored(self.reference)
        candidate = None if batch is None else self.scored(self.passes[batch])
        tables = {
            "vs_310": spec.throughput.baseline_310,
            "vs_t4": spec.throughput.baseline_t4,
            "same_chip": spec.throughput.same_chip.get(self.chip),
        }
        match name.removeprefix("throughput_").removeprefix("best_"):
            case "accuracy_guide_floor":
                return accuracy.guide_floor(candidate.figures, *counts)
            case "accuracy_guide_drop":
                return accuracy.guide_drop(candidate.figures, *counts)
            case "accuracy_measured_drop":
                return accuracy.measured_drop(candidate.figures, reference.figures, spec.accuracy, *counts)
            case "suspicious_gain":
                return accuracy.suspicious_gain(candidate.figures, reference.figures, *counts)
            case "class_size_guard":
                return accuracy.class_size_guard(self.truth, reference, candidate, spec.accuracy, counts[1])
            case "reference_ap":
                return accuracy.reference_ap(reference.figures, spec.accuracy, *counts)
            case "score_agreement":
                return agreement.score_agreement(self.match(self.reference, batch), spec.accuracy, counts[1])
            case "batch_invariance":
                other = next(size for size in spec.batch_sizes if size != batch)
                return agreement.batch_invariance(
                    self.match(self.passes[other], batch), 1e-6, counts[1], precision="full"
                )
            case "coverage":
                ids = [image["id"] for image in self.truth.coco["images"]]
                return data.coverage(self.passes[batch].images.tolist(), ids, padded_scored=0)
            case "stage_ap":
                ladder = self.ladder
                return accuracy.stage_ap(
                    ladder.stages, ladder.edited, pads_kept=False, compiled={}, count=counts[0], expected=counts[1]
                )
            case "vs_310" | "vs_t4" | "same_chip" as table:
                baseline = spec.baselines[tables[table]]
                if name.startswith("throughput_best"):
                    return self.speed.best_vs_baseline(name, baseline)
                return self.speed.vs_baseline(name, batch, baseline)
            case "fresh_inputs":
                return self.speed.fresh_inputs(batch)
            case _:
                return self.inside(name, *counts)

    def inside(self, name, count, expected):
        """Measure numbers that lie on their limits, for clauses that a bundle holds no arrays of."""
        limits, kinds = self.spec.clauses[name].limits, CATALOGUE[name].quantities
        variant = (
            "" if all(kind.variant == "" for kind in kinds.values()) else ("folded", "full")[name != "stage_tensors"]
        )
        values = {key: limit.number for key, limit in limits.items() if kinds[key].variant in ("", variant)}
        return Measurement(values, count, expected, variant=variant)

    def match(self, first, batch):
        return match(first, self.passes[batch], self.spec.accuracy, self.spec.model.max_detections)

    @property
    def ladder(self):
        ap = self.scored(self.reference).figures.ap
        rungs = {"checkpoint": ap, "raw onnx": ap, "candidate": self.scored(self.passes[8]).figures.ap}
        return LadderRecord(stages=rungs, edited={"raw onnx": ap, "raw onnx, Pads edited": ap}, pads_kept=False)

    @cached_property
    def document(self):
        spec, device = self.spec, f"simulated {self.chip}" if self.simulation else self.chip
        clauses = [
            judge(name, spec.clauses[name], self.measured(name, batch), batch=batch) for name, batch in self.required
        ]
        reasons, short = ("simulated",) if self.simulation else (), ("small_d0 is not a published spec",)
        annotation_digest, size_digest = truth_digests(self.truth)
        images = len(self.truth.coco["images"])
        return EvidenceDocument(
            release=release_verdict(
                clauses, self.required, scope="gate", subject=f"{spec.name} on {device}", session_reasons=reasons
            ),
            session_reasons=reasons,
            asked=AskedFor(
                spec=spec.name,
                chip=self.chip,
                device=device,
                mode=self.mode,
                batch_sizes=spec.batch_sizes,
                scorer="hotcoco",
                not_release=short,
            ),
            spec=spec,
            spec_digest=spec.digest,
            precision="full",
            environment=Environment(
                cpu="a processor",
                cores=2,
                memory_gib=8.0,
                system="Linux",
                python="3.11",
                packages={"numpy": "2"},
                chip=self.chip,
                simulation=self.simulation,
            ),
            code=CodeRecord(revision="unknown", dirty=None, measuring="0" * 64),
            started=STARTED,
            ended=STARTED + dt.timedelta(minutes=9),
            checkpoint=CheckpointRecord(sha256="a" * 64, known_as="d0"),
            dataset=DatasetRecord(
                annotation_digest=annotation_digest, size_digest=size_digest, images=images, whole=images
            ),
            truth=TRUTH,
            models=tuple(ModelRecord(kind="om", batch=batch, sha256=f"{batch:064x}") for batch in self.passes),
            passes={
                batch: PassRecord(
                    detections=pass_name(batch),
                    padded_scored=0,
                    timing=self.timings[batch],
                    model_sha256=f"{batch:064x}",
                )
                for batch in self.passes
            },
            reference=ReferenceRecord(ap=self.scored(self.reference).figures.ap, detections=REFERENCE),
            ladder=self.ladder if "stage_ap" in dict(self.required) else None,
        )

    def write(self, folder, document=None, **given):
        parts = {"detections": self.passes, "reference": self.reference, "truth": self.truth, "pictures": {}}
        return write_bundle(folder, document or self.document, **{**parts, **given})
