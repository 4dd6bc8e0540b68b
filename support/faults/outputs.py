"""Faults of the device and its runtime: the right network, the wrong outputs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

import support.backends.onnx_runtime
import support.devices
from support.faults.bench import BATCH, Bench, replaced
from support.faults.fault import Registry
from support.faults.kept_heads import Outputs, checksum
from support.run import Run

__all__ = ["REGISTRY"]

REGISTRY = Registry("backend")
CLASSES = 90


@REGISTRY.add("class_size_guard", "the class channel of class 'cross' (id 13)", batch=BATCH)
def class_channel_zeroed(bench: Bench, stack: ExitStack) -> Run:
    """The channels of one class, the rarest, hold nothing."""
    rare = 13

    def alter(outputs: Outputs, *_: Any) -> Outputs:
        for name, value in outputs.items():
            if name.startswith("class"):
                value[:, rare - 1 :: CLASSES] = -30.0
        return outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("stage_tensors", "compare the stages", batch=BATCH)
def level_transposed(bench: Bench, stack: ExitStack) -> Run:
    """The heads of one level have rows and columns swapped."""

    def alter(outputs: Outputs, *_: Any) -> Outputs:
        for name in ("class_p4", "box_p4"):
            outputs[name] = np.ascontiguousarray(outputs[name].swapaxes(2, 3))
        return outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("class_size_guard", "the feature level of large objects", batch=BATCH)
def anchors_of_a_cell_reversed(bench: Bench, stack: ExitStack) -> Run:
    """On two coarse levels the anchors of a cell come in reverse order."""

    def alter(outputs: Outputs, *_: Any) -> Outputs:
        for level in (5, 6):
            for kind, width in (("class", CLASSES), ("box", 4)):
                head = outputs[f"{kind}_p{level}"]
                batch, _, *cells = head.shape
                reversed_ = head.reshape(batch, -1, width, *cells)[:, ::-1]
                outputs[f"{kind}_p{level}"] = np.ascontiguousarray(reversed_).reshape(head.shape)
        return outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("score_agreement", "sigmoid applied twice", batch=BATCH)
def sigmoid_twice(bench: Bench, stack: ExitStack) -> Run:
    """The model gives scores where logits are wanted."""

    def alter(outputs: Outputs, *_: Any) -> Outputs:
        classes = {name: value for name, value in outputs.items() if name.startswith("class")}
        return {**outputs, **{name: (1 / (1 + np.exp(-value))).astype(np.float32) for name, value in classes.items()}}

    return bench.replayed(stack, alter)


@REGISTRY.add("coverage", "overflow in mixed precision", batch=BATCH)
def not_a_number_at_one_size(bench: Bench, stack: ExitStack) -> Run:
    """At one batch size a head of one image is not a number."""

    def alter(outputs: Outputs, keys: tuple[int, ...], _: int) -> Outputs:
        if len(keys) == BATCH:
            outputs["class_p6"][0] = np.nan
        return outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("score_agreement", "precision loss in the class heads", batch=BATCH)
def saturated_logits(bench: Bench, stack: ExitStack) -> Run:
    """Logits above 0.5 are cut off, as by a runtime that saturates."""

    def alter(outputs: Outputs, *_: Any) -> Outputs:
        return {name: np.minimum(value, 0.5) if name.startswith("class") else value for name, value in outputs.items()}

    return bench.replayed(stack, alter)


@REGISTRY.add("stage_tensors", "export, compilation or precision", batch=BATCH)
def heads_in_half_precision(bench: Bench, stack: ExitStack) -> Run:
    """A model that should compute in float32 gives half precision."""

    def alter(outputs: Outputs, *_: Any) -> Outputs:
        return {name: value.astype(np.float16).astype(np.float32) for name, value in outputs.items()}

    return bench.replayed(stack, alter)


@REGISTRY.add("batch_invariance", "batch handling of the runtime or the graph", batch=BATCH)
def one_image_in_a_hundred_at_random(bench: Bench, stack: ExitStack) -> Run:
    """One image in a hundred gives other numbers at every call."""
    feed, noise = bench.start().feed, np.random.default_rng(0)
    unsteady = checksum(feed.tensors([len(feed) // 2])[0])

    def alter(outputs: Outputs, keys: tuple[int, ...], _: int) -> Outputs:
        for slot, key in enumerate(keys):
            if key == unsteady:
                for value in outputs.values():
                    value[slot] += noise.normal(0, 0.1, value[slot].shape).astype(np.float32)
        return outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("timed_outputs", "cached outputs, or a runtime that skips work", batch=BATCH, step="timing")
def cached_outputs(bench: Bench, stack: ExitStack) -> Run:
    """From the fourth call on the timed run gives what it gave before."""
    seen: dict[int, Outputs] = {}

    def alter(outputs: Outputs, keys: tuple[int, ...], call: int) -> Outputs:
        if call >= 3:
            return seen.get(len(keys), outputs)
        seen[len(keys)] = outputs
        return outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("score_agreement", "boxes, or images paired with other ids", batch=BATCH)
def box_codes_in_another_order(bench: Bench, stack: ExitStack) -> Run:
    """Box codes come as (x, y, width, height) instead of (y, x, height, width)."""

    def alter(outputs: Outputs, *_: Any) -> Outputs:
        for name, value in outputs.items():
            if name.startswith("box"):
                batch, channels, *cells = value.shape
                swapped = value.reshape(batch, channels // 4, 4, *cells)[:, :, [1, 0, 3, 2]]
                outputs[name] = np.ascontiguousarray(swapped).reshape(value.shape)
        return outputs

    return bench.replayed(stack, alter)


@REGISTRY.add("coverage", "architecture of the spec", batch=BATCH)
def one_head_twice(bench: Bench, stack: ExitStack) -> Run:
    """One head comes twice and another not at all."""

    def opened(model: Any, chip: Any) -> Any:
        backend = original(model, chip)
        describe = backend._open

        def doubled() -> Any:
            tensor, outputs = describe()
            return tensor, (*outputs[:-1], replace(outputs[0], name=outputs[-1].name))

        def computed(tensor: Any) -> Any:
            outputs = compute(tensor)
            names = list(outputs)
            return {**outputs, names[-1]: outputs[names[0]]}

        compute, backend._run, backend._open = backend._run, computed, doubled
        return backend

    run = bench.replayed(stack)
    original = replaced(stack, support.devices, "open_on_chip", opened)
    return run


@REGISTRY.add("coverage", "fell back to", batch=BATCH, reason="wrong-device", step="device")
def silent_fall_back_to_the_cpu(bench: Bench, stack: ExitStack) -> Run:
    """The runtime for a GPU loads the model on the CPU and says nothing."""

    def fallen(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    runtime = SimpleNamespace(
        __version__="1.32.0",
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda *_: None),
        InferenceSession=fallen,
    )
    replaced(stack, support.backends.onnx_runtime, "_import_runtime", lambda: runtime)
    return bench.start(chip="T4")
