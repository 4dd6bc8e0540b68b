"""Faults of network inputs, of stored data and of the evaluation set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import support.feed
from support.faults.bench import BATCH, Bench, replaced
from support.faults.checkpoints import unpinned
from support.faults.fault import Registry
from support.faults.graphs import change_weight, edited, largest_weight
from support.inputs import Geometry, InputFormat
from support.reference import publish_reference
from support.run import Run

__all__ = ["REGISTRY"]

REGISTRY = Registry("input")
LOADER = "resize rounding, channel order or normalisation"


def _own_store(bench: Bench, **options: Any) -> Run:
    # The key of a feed covers neither our own code nor a fault in it: in the common store it would meet clean runs.
    return bench.start(artifacts=bench.new_folder("store"), **options)


def _pixels(bench: Bench, stack: ExitStack, change: Callable[[Any], Any]) -> Run:
    def faulty(*arguments: Any, **keywords: Any) -> Any:
        pixels, geometry = original(*arguments, **keywords)
        return np.ascontiguousarray(change(pixels)), geometry

    original = replaced(stack, support.feed, "letterbox", faulty)
    return _own_store(bench)


@REGISTRY.add("input_contract", LOADER)
def channels_swapped(bench: Bench, stack: ExitStack) -> Run:
    """Images are read as BGR."""
    return _pixels(bench, stack, lambda pixels: pixels[..., ::-1])


@REGISTRY.add("input_contract", LOADER)
def canvas_in_black(bench: Bench, stack: ExitStack) -> Run:
    """What the image leaves free is black instead of the mean colour."""
    fill = InputFormat.from_model(bench.world.spec.model).fill

    return _pixels(bench, stack, lambda pixels: np.where((pixels == fill).all(axis=-1, keepdims=True), 0, pixels))


@REGISTRY.add("input_contract", LOADER)
def resized_without_smoothing(bench: Bench, stack: ExitStack) -> Run:
    """Images are resized to the nearest pixel instead of bilinearly."""

    def faulty(image: Any, fmt: InputFormat, **_: Any) -> Any:
        geometry = Geometry.of(image.width, image.height, fmt.size)
        canvas = Image.new("RGB", (fmt.size, fmt.size), fmt.fill)
        sides = int(image.width / geometry.scale), int(image.height / geometry.scale)
        canvas.paste(image.resize(sides, Image.Resampling.NEAREST))
        return np.asarray(canvas), geometry

    replaced(stack, support.feed, "letterbox", faulty)
    return _own_store(bench)


@REGISTRY.add("input_contract", LOADER)
def normalisation_dropped(bench: Bench, stack: ExitStack) -> Run:
    """Mean and standard deviation are not applied."""

    def faulty(pixels: Any, fmt: InputFormat, out: Any) -> None:
        out[...] = np.moveaxis(pixels, -1, 1) / np.float32(255)

    replaced(stack, support.feed, "normalise", faulty)
    return _own_store(bench)


@REGISTRY.add("input_contract", LOADER)
def normalised_in_another_order(bench: Bench, stack: ExitStack) -> Run:
    """Inputs are off by the last bit, as by (x / 255 - mean) / std."""

    def faulty(pixels: Any, fmt: InputFormat, out: Any) -> None:
        scaled = np.moveaxis(pixels, -1, 1).astype(np.float32) / np.float32(255)
        shape = (1, 3, 1, 1)
        mean, std = (np.array(part, np.float32).reshape(shape) for part in (fmt.mean, fmt.std))
        out[...] = (scaled - mean) / std

    replaced(stack, support.feed, "normalise", faulty)
    return _own_store(bench)


@REGISTRY.add("input_contract", LOADER)
def image_replaced(bench: Bench, stack: ExitStack) -> Run:
    """One image file was replaced by another of the same size after the reference was recorded."""
    clean = bench.start()
    reference = bench.new_folder("reference")
    publish_reference(clean.reference, reference, {})
    root = _copied_root(bench)
    images = [image for image in clean.dataset.images if (image.width, image.height) == (640, 480)]
    folder = root / bench.world.spec.dataset.images
    shutil.copy(images[0].path, folder / images[1].file_name)
    return bench.start(reference=reference, coco_root=root)


def _copied_root(bench: Bench) -> Path:
    root = bench.new_folder("coco") / "root"
    shutil.copytree(bench.world.root, root)
    return root


@REGISTRY.add("coverage", "cannot be decoded", batch=BATCH, reason="wrong-data")
def image_truncated(bench: Bench, stack: ExitStack) -> Run:
    """The file of one image ends in its middle."""
    root = _copied_root(bench)
    path = sorted((root / bench.world.spec.dataset.images).iterdir())[30]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return bench.start(coco_root=root, artifacts=bench.new_folder("store"), onnx=_clean_models(bench))


def _clean_models(bench: Bench) -> str:
    """Models under the names of --onnx, for runs in a store of their own."""
    folder, run = bench.new_folder("models"), bench.start()
    for batch in run.spec.batch_sizes:
        (folder / f"bs{batch}.onnx").symlink_to(run.built.modified(batch).path.resolve())
    return f"{folder}/bs{{batch}}.onnx"


def _truth(bench: Bench, edit: Callable[[dict[str, Any]], None]) -> Run:
    root = _copied_root(bench)
    path = root / bench.world.spec.dataset.annotations
    truth = json.loads(path.read_text(encoding="utf-8"))
    edit(truth)
    path.write_text(json.dumps(truth), encoding="utf-8")
    return bench.start(coco_root=root)


@REGISTRY.add("dataset_pins", "annotation_digest", reason="wrong-data", step="scoring")
def annotations_lost(bench: Bench, stack: ExitStack) -> Run:
    """The last annotations of the ground truth are gone."""

    def edit(truth: dict[str, Any]) -> None:
        del truth["annotations"][-20:]

    return _truth(bench, edit)


@REGISTRY.add("dataset_pins", "annotation_digest", reason="wrong-data", step="scoring")
def truth_edited(bench: Bench, stack: ExitStack) -> Run:
    """One hard object of the ground truth is marked as a crowd, so that missing it costs nothing."""

    def edit(truth: dict[str, Any]) -> None:
        next(item for item in truth["annotations"] if not item["iscrowd"])["iscrowd"] = 1

    return _truth(bench, edit)


@REGISTRY.add("dataset_pins", "image_count", reason="wrong-data", step="scoring")
def another_split(bench: Bench, stack: ExitStack) -> Run:
    """The evaluation set lacks an image."""

    def edit(truth: dict[str, Any]) -> None:
        gone = truth["images"].pop()["id"]
        truth["annotations"] = [item for item in truth["annotations"] if item["image_id"] != gone]

    return _truth(bench, edit)


@REGISTRY.add("dataset_pins", "is not JSON", reason="wrong-data", step="scoring")
def annotations_truncated(bench: Bench, stack: ExitStack) -> Run:
    """The annotation file ends in its middle."""
    root = _copied_root(bench)
    path = root / bench.world.spec.dataset.annotations
    path.write_bytes(path.read_bytes()[:-1000])
    return bench.start(coco_root=root)


# --- the store


@REGISTRY.add("coverage", "does not have its checksum", batch=BATCH, reason="wrong-data", step="store")
def bit_flipped_in_the_feed(bench: Bench, stack: ExitStack) -> Run:
    """A bit of a stored network input flipped."""
    run = _own_store(bench, onnx=_clean_models(bench))
    pixels = run.feed.folder / "pixels.u8"
    with pixels.open("r+b") as file:
        file.seek(pixels.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return run


@REGISTRY.add("weights_account", "weights of another checkpoint", batch=BATCH, step="store")
def stale_artifact(bench: Bench, stack: ExitStack) -> Run:
    """The store holds the model of another checkpoint under the key of this one, with a manifest that fits."""
    store = bench.new_folder("store")
    clean = bench.start()
    model = clean.built.modified(BATCH)
    stale = edited(bench, model, lambda graph: change_weight(largest_weight(graph), lambda values: values * 0.99))
    entry = model.path.parent
    for part in ("onnx", "simplified_onnx", "modified_onnx"):
        shutil.copytree(bench.artifacts / part, store / part)
    copy = store / "modified_onnx" / entry.name
    shutil.copy(stale.path, copy / model.path.name)
    manifest = json.loads((copy / "artifact.json").read_text(encoding="utf-8"))
    manifest["files"][model.path.name] = {"bytes": stale.path.stat().st_size, "sha256": stale.sha256}
    (copy / "artifact.json").write_text(json.dumps(manifest), encoding="utf-8")
    return bench.start(artifacts=store)


@REGISTRY.add("score_agreement", "is sha256", batch=BATCH, reason="wrong-data", step="store")
def reference_damaged(bench: Bench, stack: ExitStack) -> Run:
    """A file of the reference bundle changed after it was recorded."""
    reference = bench.new_folder("reference")
    publish_reference(bench.start().reference, reference, {})
    path = reference / "detections.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return bench.replayed(stack, reference=reference)


@REGISTRY.add("score_agreement", "recorded with another checkpoint", batch=BATCH, reason="wrong-data", step="store")
def reference_of_another_checkpoint(bench: Bench, stack: ExitStack) -> Run:
    """The reference bundle was recorded with another checkpoint."""
    import torch

    reference, clean = bench.new_folder("reference"), bench.start()
    publish_reference(clean.reference, reference, {})
    path = bench.new_folder("checkpoint") / "d0.pth"
    torch.save(dict(clean.checkpoint.tensors), path)
    return bench.replayed(stack, reference=reference, checkpoint=path, spec=unpinned(bench.world.spec))
