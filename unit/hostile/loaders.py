"""Everything that reads files from elsewhere: how a good one is made, and how it is read."""

import datetime as dt
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from support.artifacts import file_sha256
from support.ascend.bench_summary import read_summary
from support.ascend.om_facts import parse_om_json
from support.baselines import best_accepted, saved_files
from support.dataset import open_dataset
from support.detections import Detections
from support.errors import ToolError
from support.evidence.bundle import read_bundle
from support.evidence.columns import load_columns, save_columns
from support.evidence.replay import replay
from support.evidence.truth import load_truth, save_truth
from support.heads import Heads
from support.inputs import open_image
from support.onnx_files import load_onnx
from support.passes import read_heads, write_heads
from support.reference import open_reference, write_reference
from support.simulator.om import BrokenOmError, Om, OmTensor, read_om, write_om
from support.spec import load_spec
from support.waivers import load_waivers

CHECKOUT = Path(__file__).resolve().parents[2]
LAYOUT = load_spec("shapes_d0").dataset
SHARED: dict[str, Any] = {}


@dataclass(frozen=True)
class Loader:
    """
    One reader of files.

    `make` writes a good file, with everything it needs around it, into an empty folder and returns its path; `load`
    reads it and uses all of it. No change whatever of the bytes of a `sealed` file may go unnoticed, and no cut of a
    `whole` one. What is read of a `derived` file is made of its bytes first, so that only these can be hostile. A
    `json` file holds JSON, `number` is a piece of it that counts as one; an `optional` file may be absent.
    """

    name: str
    make: Callable[[Path], Path]
    load: Callable[[Path], Any]
    sealed: bool = False
    whole: bool = True
    derived: bool = False
    json: bool = False
    number: str = ""
    optional: bool = False

    def __str__(self):
        return self.name


def detections():
    return Detections(
        images=np.array([7, 3], np.int64),
        image_ids=np.array([7, 7], np.int64),
        boxes=np.array([[0, 1, 2, 3], [4, 5, 6, 7]], np.float32),
        scores=np.array([0.5, 0.25], np.float32),
        category_ids=np.array([1, 2], np.int32),
        anchors=np.array([4, 0], np.int32),
    )


def heads():
    level = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    return Heads((level, level + 1), (level + 2, level + 3))


def make_spec(folder):
    path = folder / "spec.toml"
    path.write_bytes((CHECKOUT / "acceptance/shapes_d0.toml").read_bytes())
    return path


def make_coco(folder):
    (folder / "val2017").mkdir()
    path = folder / LAYOUT.annotations
    path.parent.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / "val2017" / name).touch()
    images = [{"id": n, "file_name": f"{name}.jpg", "width": 640, "height": 480} for n, name in enumerate("ab", 1)]
    box = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [1.0, 2.0, 30.5, 40.0], "area": 1220.0, "iscrowd": 0}
    coco = {"images": images, "annotations": [box], "categories": [{"id": 3, "name": "disc"}]}
    path.write_text(json.dumps(coco))
    return path


def make_jpeg(folder):
    path = folder / "a.jpg"
    gradient = np.add.outer(np.arange(48), np.arange(64))[..., None] * np.array([1, 2, 3])
    Image.fromarray(gradient.astype(np.uint8)).save(path, quality=90)
    return path


def make_png(folder):
    path = folder / "a.png"
    open_image(make_jpeg(folder)).save(path)
    return path


def small_onnx():
    weight = numpy_helper.from_array(np.ones((1, 3), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "weight"], ["y"], "add")],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)


def make_onnx(folder):
    onnx.save(small_onnx(), folder / "model.onnx")
    return folder / "model.onnx"


def make_detections(folder):
    detections().save(folder / "detections.npz")
    return folder / "detections.npz"


def make_columns(folder):
    save_columns(folder / "bs1.npz", detections())
    return folder / "bs1.npz"


def make_heads(folder):
    write_heads(folder / "golden.npz", heads())
    return folder / "golden.npz"


def small_truth():
    if "truth" not in SHARED:
        from unit.evidence.bundles import truth

        SHARED["truth"] = truth(2)
    return SHARED["truth"]


def make_truth(folder):
    save_truth(folder / "ground_truth.json.gz", small_truth())
    return folder / "ground_truth.json.gz"


def load_truth_text(path):
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return load_truth(packed)


def make_truth_text(folder):
    path = folder / "truth.json"
    path.write_bytes(gzip.decompress(make_truth(folder).read_bytes()))
    return path


def bundle(folder):
    if "bundle" not in SHARED:
        from unit.evidence.bundles import World

        world = World(images=16)
        world.write(folder / "first")
        SHARED["bundle"] = {
            str(path.relative_to(folder / "first")): path.read_bytes()
            for path in (folder / "first").rglob("*")
            if path.is_file()
        }
        shutil.rmtree(folder / "first")
    for name, data in SHARED["bundle"].items():
        path = folder / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "bundle"


def part_of_bundle(name):
    return lambda folder: bundle(folder) / name


def load_bundle(path):
    folder = next(parent for parent in path.parents if parent.name == "bundle")
    return replay(read_bundle(folder))


def load_resealed(path):
    # Whoever edits the evidence can write a new seal as well.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "evidence.sha256").write_text(f"{digest}  evidence.json\n")
    return load_bundle(path)


def reference(folder):
    facts = {
        "spec_name": "x",
        "spec_version": "1",
        "model_digest": "m",
        "checkpoint_sha256": "c",
        "checkpoint_known_as": "unknown",
        "annotation_digest": "a",
        "size_digest": "s",
        "input_checksums": {7: 1, 3: 2},
        "golden_ids": (7,),
        "ap": 33.6,
        "runtime": {"torch": "2"},
    }
    write_reference(folder / "ref", detections(), heads(), facts)
    return folder / "ref"


def part_of_reference(name):
    return lambda folder: reference(folder) / name


def load_reference(path):
    found = open_reference(path.parent)
    return found.detections, found.golden


def load_resealed_reference(path):
    facts = path.parent / "reference.json"
    sealed = json.loads(facts.read_text())
    sealed["files"][path.name] = file_sha256(path)
    facts.write_text(json.dumps(sealed))
    return load_reference(path)


def make_baseline(folder):
    machine = {"node": "rack7", "cpu": {"brand_raw": "x", "count": 2}}
    info = {
        "spec": "s",
        "machine": "m",
        "chip": "cpu",
        "batch": 1,
        "timer": "t",
        "includes_copies": True,
        "confidence": 0.95,
        "images_per_second": 100.0,
        "lower": 90.0,
        "upper": 110.0,
        "real_images_per_second": 95.0,
        "calls": 5,
        "images": 5,
        "p50_ms": 1.0,
        "p90_ms": 1.0,
        "p99_ms": 1.0,
    }
    run = {"datetime": "2026-11-01", "machine_info": machine, "benchmarks": [{"extra_info": info}]}
    path = folder / "0001_run.json"
    path.write_text(json.dumps({**run, "verdict": {"word": "accepted"}}))
    SHARED["record"] = info
    return path


def load_baseline(path):
    from support.baselines import ThroughputRecord

    return best_accepted(saved_files(str(path.parent)), ThroughputRecord.model_validate(SHARED["record"]))


def make_summary(folder):
    samples = {"0": {"infiles": ["a.bin"], "outfiles": ["/there/a_0.bin"]}}
    facts = {"npu_compute_time_list": [30.0, [1.0, 32.0]], "filesinfo": samples, "throughput": 129.0}
    path = folder / "sumary.json"
    path.write_text(json.dumps({**facts, "NPU_compute_time": {"mean": 31.0}}))
    return path


def load_summary(path):
    summary = read_summary(path.parent)
    return summary and (summary, summary.batch)


def make_om_json(folder):
    data = {"name": "x.1", "type": "Data", "input_desc": [{"dtype": "DT_FLOAT", "shape": {"dim": [1, 3]}}]}
    end = {"name": "out", "type": "NetOutput", "input_desc": [{"dtype": "DT_FLOAT", "shape": {"dim": [1, 9]}}]}
    conv = {"name": "c", "type": "Conv2D", "input_desc": [{"dtype": "DT_FLOAT16"}], "output_desc": [{"dtype": "DT_X"}]}
    attr = [{"key": "soc_version", "value": {"s": "Ascend310P3"}}, {"key": "atc_cmdline", "value": {"s": "atc --x=1"}}]
    path = folder / "om.json"
    path.write_text(json.dumps({"attr": attr, "graph": [{"name": "root", "op": [data, conv, end]}]}))
    return path


def load_om_json(path):
    return parse_om_json(path.read_text(encoding="utf-8", errors="replace"))


def make_om(folder):
    tensor = OmTensor("x", (1, 3), "float32")
    graph = small_onnx().SerializeToString()
    write_om(folder / "a.om", Om((tensor,), (tensor,), "Ascend310P3", "allow", ("add",), (), False, "atc", "8", graph))
    return folder / "a.om"


def load_om(path):
    try:
        return read_om(path)
    except (BrokenOmError, OSError) as error:
        # The error of another process, which the runtime reports in its own words.
        raise ToolError(str(error)) from error


def make_checkpoint(folder):
    import torch

    torch.save({"a": torch.zeros(3), "b": torch.ones(2, 2)}, folder / "d0.pth")
    return folder / "d0.pth"


def make_safetensors(folder):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3), "b": torch.ones(2, 2)}, folder / "d0.safetensors")
    return folder / "d0.safetensors"


def load_weights(path):
    from support.checkpoint import key_violations, load_checkpoint

    spec = load_spec("shapes_d0")
    found = load_checkpoint(path, spec.model, spec.checkpoint.model_copy(update={"sha256": None}))
    return key_violations(found, spec.model)


def make_waivers(folder):
    path = folder / "waivers.toml"
    path.write_text('[[waiver]]\nclause = "stage_ap"\nreason = "r"\nowner = "o"\nexpires = 2026-12-01\n')
    return path


def read_waivers(path):
    return load_waivers(path, [("stage_ap", None)], dt.date(2026, 11, 24))


LOADERS = (
    Loader("waivers", make_waivers, read_waivers, whole=False, number="2026"),
    Loader("spec", make_spec, lambda path: load_spec(str(path)), whole=False, number="41.22297239062063"),
    Loader("coco", make_coco, lambda path: open_dataset(path.parents[1], LAYOUT), json=True, number="1220.0"),
    Loader("jpeg", make_jpeg, open_image),
    Loader("png", make_png, open_image),
    Loader("onnx", make_onnx, load_onnx),
    Loader("detections", make_detections, Detections.load),
    Loader("columns of evidence", make_columns, load_columns),
    Loader("heads", make_heads, read_heads),
    Loader("packed truth", make_truth, load_truth),
    Loader("truth", make_truth_text, load_truth_text, json=True, derived=True),
    Loader("evidence", part_of_bundle("evidence.json"), load_bundle, sealed=True),
    Loader("seal of evidence", part_of_bundle("evidence.sha256"), load_bundle, sealed=True),
    Loader("pass in evidence", part_of_bundle("detections/bs1.npz"), load_bundle, sealed=True),
    Loader("truth in evidence", part_of_bundle("ground_truth.json.gz"), load_bundle, sealed=True),
    Loader("resealed evidence", part_of_bundle("evidence.json"), load_resealed, json=True, derived=True),
    Loader("facts of a reference", part_of_reference("reference.json"), load_reference, json=True, number="2"),
    Loader("detections in a reference", part_of_reference("detections.npz"), load_reference, sealed=True),
    Loader("heads in a reference", part_of_reference("golden.npz"), load_reference, sealed=True),
    Loader("resealed detections", part_of_reference("detections.npz"), load_resealed_reference, derived=True),
    Loader("resealed heads", part_of_reference("golden.npz"), load_resealed_reference, derived=True),
    Loader("saved run", make_baseline, load_baseline, json=True, number="100.0"),
    Loader("summary of ais_bench", make_summary, load_summary, json=True, number="129.0", optional=True),
    Loader("description of an om", make_om_json, load_om_json, json=True, derived=True),
    Loader("simulated om", make_om, load_om, sealed=True),
    Loader("pth", make_checkpoint, load_weights),
    Loader("safetensors", make_safetensors, load_weights),
)
