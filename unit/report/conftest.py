import dataclasses
import datetime as dt
import itertools
from pathlib import Path

import numpy as np
import pytest

from support.clauses import CATALOGUE
from support.dataset import GroundTruth, open_dataset
from support.detections import Detections
from support.evidence.bundle import Bundle, write_bundle
from support.evidence.model import (
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
)
from support.localiser.record import Localisation
from support.report.page import page_of, worst_pictures
from support.spec import load_spec
from support.timing import CallSample, PassTiming
from support.verdict import Measurement, judge, release_verdict
from support.waivers import Waiver

KIT = Path(__file__).resolve().parents[2] / "fixtures/data/shapes"
VARIANTS = {"stage_tensors": "folded", "batch_invariance": "full", "timed_outputs": "full"}
BATCHES = (1, 4, 8, 16, 32, 64)
HASH = "5a" * 32
NOON = dt.datetime(2026, 11, 24, 12, tzinfo=dt.timezone.utc)


@pytest.fixture(scope="session")
def spec():
    return load_spec("shapes_d0")


@pytest.fixture(scope="session")
def dataset(spec):
    return open_dataset(KIT, spec.dataset)


@pytest.fixture(scope="session")
def truth(dataset):
    return dataset.truth


@pytest.fixture(scope="session")
def reference(truth):
    """Most objects, a little beside their places, and a few that are not there."""
    generator = np.random.default_rng(4)
    rows = [row for row in truth.coco["annotations"] if not row["iscrowd"]]
    kept = [row for row in rows if generator.random() < 0.8]
    boxes = np.array([row["bbox"] for row in kept], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    boxes += generator.normal(0, 2, boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    return Detections(
        images=np.array([image["id"] for image in truth.coco["images"]], np.int64),
        image_ids=np.array([row["image_id"] for row in kept], np.int64),
        boxes=boxes.astype(np.float32),
        scores=generator.uniform(0.1, 1, len(kept)).astype(np.float32),
        category_ids=np.array([row["category_id"] for row in kept], np.int32),
        anchors=np.zeros(len(kept), np.int32),
    )


def rows_of(detections, rows):
    """Some of the detections, over the same images."""
    columns = ("image_ids", "boxes", "scores", "category_ids", "anchors")
    rows = np.arange(len(detections.scores))[np.asarray(rows, np.bool_ if len(rows) else np.int64)]
    return dataclasses.replace(detections, **{name: getattr(detections, name)[rows] for name in columns})


@pytest.fixture(scope="session")
def verdicts(spec):
    """Every clause of the kit's gate on a CPU, well inside its limits."""
    required = spec.required(mode="build", chip="cpu", scopes=frozenset({"gate", "throughput"}))
    return [judge(name, spec.clauses[name], inside(spec, name), batch=batch) for name, batch in required]


def inside(spec, name):
    variant = VARIANTS.get(name, "")
    quantities = CATALOGUE[name].quantities
    limits = {
        key: limit for key, limit in spec.clauses[name].limits.items() if quantities[key].variant in ("", variant)
    }
    values = {key: limit.number * (1.02 if limit.direction == "min" else 0.4) for key, limit in limits.items()}
    return Measurement(values, count=133, expected=133, variant=variant, findings=("largest change: 0.0002",))


@pytest.fixture(scope="session")
def document(spec, dataset, verdicts):
    """Evidence of a clean run of the kit on a CPU."""
    required = [(verdict.clause, verdict.batch) for verdict in verdicts]
    return EvidenceDocument(
        release=release_verdict(verdicts, required, scope="gate", subject="shapes_d0 on cpu"),
        asked=AskedFor(
            spec="shapes_d0",
            chip="cpu",
            device="cpu",
            mode="build",
            batch_sizes=BATCHES,
            scorer="hotcoco",
            not_release=("--chip=cpu",),
            argv=("-m", "acceptance", "--chip=cpu"),
        ),
        spec=spec,
        spec_digest=spec.digest,
        precision="full",
        environment=Environment(
            cpu="a processor", cores=2, memory_gib=8, system="Linux", python="3.11", packages={"numpy": "2"}, chip="cpu"
        ),
        code=CodeRecord(revision="1d336a6c0", dirty=False, measuring=HASH),
        started=NOON,
        ended=NOON + dt.timedelta(minutes=4),
        checkpoint=CheckpointRecord(sha256=HASH),
        dataset=DatasetRecord(
            annotation_digest=dataset.annotation_digest, size_digest=dataset.size_digest, images=133, whole=133
        ),
        truth="ground_truth.json.gz",
        models=tuple(ModelRecord(kind="modified_onnx", batch=batch, sha256=HASH) for batch in BATCHES),
        passes={batch: timed_pass(batch) for batch in BATCHES},
        reference=ReferenceRecord(ap=41.2, detections="detections/reference.npz"),
        ladder=LadderRecord(
            stages={"checkpoint": 41.22, "raw onnx": 41.22, "simplified onnx": 41.22, "candidate": 41.21},
            edited={"raw onnx": 41.22, "raw onnx, Pads edited": 40.88},
            pads_kept=False,
        ),
    )


def timed_pass(batch):
    seconds = [batch / 18 * (1 + 0.01 * (place % 3)) for place in range(6)]
    timing = PassTiming(
        chip="cpu",
        batch=batch,
        calls=tuple(CallSample(value, batch) for value in seconds),
        warm_up=(1.0,),
        timer="wall time of session.run, copies included",
        includes_copies=True,
    )
    return PassRecord(detections=f"detections/bs{batch}.npz", padded_scored=0, timing=timing, model_sha256=HASH)


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory, dataset, reference):
    """Write a bundle and open it; the candidate finds what the reference finds."""

    def write(document, *, candidate=reference, truth=dataset.truth, pictures=False):
        detections = dict.fromkeys(document.passes, candidate)
        known, truth = (reference if document.reference else None), (truth if document.truth else None)
        paths = {image.id: image.path for image in dataset.images}
        drawn = worst_pictures(dataset.truth, detections, known, document.spec, paths) if pictures else {}
        folder = tmp_path_factory.mktemp("evidence") / "bundle"
        write_bundle(folder, document, detections=detections, reference=known, truth=truth, pictures=drawn)
        return Bundle(folder, document)

    return write


@pytest.fixture(scope="session")
def bundle(bundle_of, document):
    """Evidence of a clean run, with pictures."""
    return bundle_of(document, pictures=True)


@pytest.fixture(scope="session")
def page(bundle):
    """Report of a clean run."""
    return page_of(bundle)


HOSTILE = {
    "a script": "<script>alert(1)</script>",
    "an end of everything": "\"'></td></table></svg></style></title><script src=//example.org></script>",
    "an image": "<img src=x onerror=alert(1)>",
    "markdown": "[x](http://example.org) ![x](http://example.org/x.png) **b** | ` `` | \\| # h",
    "a rule of markdown": "\n\n# accepted\n\n---\n",
    "a template": "{{ 7 * 7 }}{% raw %}",
    "mathematics": "$\\frac{1}{0}$ $x^$",
    "colours": "\x1b[31mred\x1b[0m\x9b2J",
    "a line taken back": "rejected\raccepted",
    "text from right to left": "\u202edetpecca\u202c\u2028",
    "NUL": "a\x00b",
    "nothing": " ",
    "a very long name": "x" * 5000,
}


@pytest.fixture(scope="session")
def spread(document, truth, bundle_of):
    """Put texts nobody has vouched for wherever one can come from."""

    def write(texts):
        every = " ".join(texts)
        clauses = [clause for text in texts for clause in _hostile_clauses(document, text)]
        release = {"word": "rejected", "subject": every, "clauses": (*clauses, *document.release.clauses)}
        asked = {"device": every, "argv": (*texts,), "not_release": (*texts,)}
        environment = {"simulation": every, "cpu": every, "packages": dict(zip(texts, texts, strict=True))}
        changes = {
            "release": document.release.model_copy(update=release),
            "spec": document.spec.model_copy(update={"title": every}),
            "asked": document.asked.model_copy(update=asked),
            "environment": document.environment.model_copy(update=environment),
            "code": document.code.model_copy(update={"revision": every}),
            "models": tuple(ModelRecord(kind=text, sha256=HASH) for text in texts),
            "localisation": Localisation(suspect=every, red=(*texts,), batch=1, groups=(*texts,), notes=(*texts,)),
            "waivers": tuple(Waiver(clause=text, reason=text, owner=text, expires=NOON.date()) for text in texts),
            "ladder": document.ladder.model_copy(update={"stages": dict.fromkeys(texts, 41.0)}),
        }
        named = zip(truth.coco["categories"], itertools.cycle(texts), strict=False)
        categories = [{**category, "name": text} for category, text in named]
        renamed = GroundTruth({**truth.coco, "categories": categories}, truth.category_ids)
        return bundle_of(document.model_copy(update=changes), truth=renamed, pictures=True)

    return write


def _hostile_clauses(document, text):
    red = document.release.clauses[0].model_copy(
        update={"clause": text, "word": "rejected", "findings": (text, f"a\n{text}"), "suspect": text, "batch": 4}
    )
    reading = red.readings[0].model_copy(update={"name": text, "inside": False})
    lost = red.model_copy(update={"word": "undetermined", "reason": "tool-error", "readings": (), "batch": 8})
    return red.model_copy(update={"readings": (reading,)}), lost
