"""
Training of the Shapes checkpoint: EfficientDet-D0 from scratch on generated scenes.

The network learns ten classes at 256 x 256; afterwards its class head is widened to the 90 classes of COCO, so that
the checkpoint has the shape of the real one. All figures of the recipe are choices of this project.

The committed checkpoint came out of this recipe while its cosine followed a time limit, which ended it after 3,048
steps. Following the steps alone, as here, gives other weights. A checkpoint is judged by the AP that
`support.shapes.reference` measures.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from support.errors import NoDataError, ToolError, UsageError, WrongDataError
from support.progress import Progress
from support.shapes.scenes import CATEGORIES, KINDS, Population, Scene, render

if TYPE_CHECKING:
    import torch

__all__ = [
    "ARCHITECTURE",
    "Sample",
    "Sampler",
    "TrainingPlan",
    "learning_rate",
    "load_tensors",
    "state_path",
    "train",
    "training_scenes",
    "widen_heads",
]

ARCHITECTURE = "tf_efficientdet_d0"
#: Classes of the widened head (COCO's ids run to 90) and anchors of a cell, as effdet builds them.
CLASSES = 90
ANCHORS = 9

POOL_SEED = 11
SAMPLE_SEED = 5
WEIGHT_SEED = 0
WIDENING_SEED = 90

_POPULATION = Population(smallest=10, largest=210, most=6)
_WARM_UP_STEPS = 150
_BATCH_NORM_MOMENTUM = 0.03
_WEIGHT_DECAY = 1e-2
_LARGEST_GRADIENT = 10.0


@dataclass(frozen=True)
class TrainingPlan:
    """
    What a training consists of; with the same versions and thread count, the same plan gives the same checkpoint.

    Parameters
    ----------
    steps : int
        Optimiser steps; the learning rate falls along a cosine over all of them.
    pool : int
        Number of scenes to draw samples from, all held in memory: 8,000 of 256 x 256 take 1.6 GB.
    size : int
        Side of a scene in pixels, a multiple of 128.
    batch : int
        Samples of a step.
    peak_rate : float
        Largest learning rate. That of the committed checkpoint was not recorded; the default is a new choice.
    """

    steps: int = 3048
    pool: int = 8000
    size: int = 256
    batch: int = 16
    peak_rate: float = 2e-3


@dataclass(frozen=True)
class Sample:
    """
    One augmented scene.

    `image` is (3, S, S) float32, normalised; `boxes` (N, 4) float32 as (y0, x0, y1, x1) in pixels; `labels` (N,) int64,
    counted from 1 in the order of `KINDS`.
    """

    image: NDArray[np.float32]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def training_scenes(count: int, size: int) -> Iterator[Scene]:
    """Render the training scenes, square ones; scene *i* is the same whatever the count."""
    for index in range(count):
        yield render(np.random.default_rng([POOL_SEED, index]), size, size, _POPULATION)


class Sampler:
    """
    Draws augmented samples from a pool of square scenes.

    Parameters
    ----------
    scenes : sequence of Scene
        The pool.
    mean, std : tuple of float
        Of each colour, as fractions of 1.
    """

    def __init__(self, scenes: Sequence[Scene], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.rng = np.random.default_rng(SAMPLE_SEED)
        self._scenes = scenes
        self._mean = np.array(mean, np.float32) * 255
        self._std = np.array(std, np.float32) * 255

    def draw(self) -> Sample:
        """Draw one sample."""
        scene = self._scenes[int(self.rng.integers(len(self._scenes)))]
        boxes = np.array([item.box for item in scene.objects], np.float32).reshape(-1, 4)
        labels = np.array([KINDS.index(item.kind) + 1 for item in scene.objects], np.int64)
        pixels, boxes = self._turn(scene.pixels, boxes)
        image = self._recolour(pixels)
        if self.rng.random() < 0.15:
            image, boxes, labels = self._cut(image, boxes, labels)
        return Sample(image.transpose(2, 0, 1).copy(), boxes[:, [1, 0, 3, 2]], labels)

    def _turn(
        self, pixels: NDArray[np.uint8], boxes: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Mirror and transpose: eight ways to look at a scene."""
        size = len(pixels)
        if self.rng.random() < 0.5:
            pixels = pixels[:, ::-1]
            boxes[:, [0, 2]] = size - boxes[:, [2, 0]]
        if self.rng.random() < 0.5:
            pixels = pixels[::-1]
            boxes[:, [1, 3]] = size - boxes[:, [3, 1]]
        if self.rng.random() < 0.5:
            pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
        return pixels, boxes

    def _recolour(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Swap the colours, change contrast and brightness, and normalise."""
        image = pixels[..., self.rng.permutation(3)].astype(np.float32)
        image = image * self.rng.uniform(0.7, 1.2) + self.rng.uniform(-20, 20)
        return np.asarray((image.clip(0, 255) - self._mean) / self._std, np.float32)

    def _cut(
        self, image: NDArray[np.float32], boxes: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Leave the lower part empty, as letterboxing leaves it under a landscape image."""
        end = int(self.rng.integers(len(image) // 2, len(image)))
        image[end:] = 0
        kept = boxes[:, 1] < end - 3
        boxes, labels = boxes[kept], labels[kept]
        boxes[:, 3] = boxes[:, 3].clip(max=end)
        return image, boxes, labels


def learning_rate(step: int, plan: TrainingPlan) -> float:
    """
    Learning rate of a step: a linear warm-up times a cosine that falls to 2 %.

    Examples
    --------
    >>> plan = TrainingPlan(steps=1000, peak_rate=1.0)
    >>> [round(learning_rate(step, plan), 3) for step in (0, 500, 1000)]
    [0.007, 0.51, 0.02]
    """
    warm_up = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return plan.peak_rate * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / plan.steps)))


def state_path(target: Path) -> Path:
    """Where the state of an unfinished training lies: beside its target."""
    return target.with_name(f"{target.name}.unfinished")


def train(
    target: Path, plan: TrainingPlan, progress: Progress, *, resume: bool = False, save_every: int = 100
) -> float:
    """
    Train a checkpoint, widen its heads and save it.

    The state is saved on the way; with `resume` a stopped training goes on from there and ends with the same checkpoint
    as if it had never stopped.

    Parameters
    ----------
    target : Path
        File to write: a plain state dict of 784 tensors that loads strictly into `ARCHITECTURE`.
    plan : TrainingPlan
        What to do.
    progress : Progress
        Told of every scene and every step.
    resume : bool
        Go on with the unfinished training of `target`.
    save_every : int
        Steps between two saves of the state.

    Returns
    -------
    loss : float
        Loss of the last step.

    Raises
    ------
    UsageError
        If `target` exists, its folder does not, an unfinished training is in the way, or one of another plan is to be
        resumed.
    NoDataError, WrongDataError
        If there is nothing to resume, or it is damaged.
    ToolError
        If the loss is no longer finite.
    """
    import torch

    state = _earlier_state(target, plan, resume=resume)
    # The caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        training = _Training(plan, _pool(plan, progress))
        if state is not None:
            training.restore(state)
        _run(training, progress, state_path(target), save_every)
    _save(widen_heads(training.average), target)
    state_path(target).unlink(missing_ok=True)
    return training.loss


def _earlier_state(target: Path, plan: TrainingPlan, *, resume: bool) -> Mapping[str, Any] | None:
    saved = state_path(target)
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder", remedy="make it first, or name another target")
    if target.exists():
        raise UsageError(f"{target} exists already", required="a new file", remedy="move it, or name another target")
    if resume:
        return _state_of(saved, plan)
    if saved.exists():
        raise UsageError(f"{saved} is an unfinished training", remedy="go on with --resume, or delete the file")
    return None


def _state_of(saved: Path, plan: TrainingPlan) -> Mapping[str, Any]:
    state = load_tensors(saved)
    if "plan" not in state:
        raise WrongDataError(f"{saved} is not the state of a training", remedy="delete it and start again")
    if state["plan"] != asdict(plan):
        raise UsageError(f"{saved} belongs to {state['plan']}", required=str(asdict(plan)), remedy="use its options")
    return state


def _pool(plan: TrainingPlan, progress: Progress) -> list[Scene]:
    scenes = []
    with progress.step("rendering training scenes") as advance:
        for scene in training_scenes(plan.pool, plan.size):
            scenes.append(scene)
            advance(len(scenes), plan.pool)
    return scenes


def _run(training: _Training, progress: Progress, saved: Path, save_every: int) -> None:
    steps = training.plan.steps
    with progress.step("training") as advance:
        while training.step < steps:
            training.advance()
            if training.step % save_every == 0:
                _save(training.state(), saved)
            advance(training.step, steps)


class _Training:
    """A network with everything that decides its next step."""

    def __init__(self, plan: TrainingPlan, scenes: Sequence[Scene]) -> None:
        import torch
        from effdet import DetBenchTrain
        from effdet.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        torch.manual_seed(WEIGHT_SEED)
        self.plan, self.step, self.loss = plan, 0, math.nan
        self.sampler = Sampler(scenes, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self.network = _network(plan.size)
        self.bench = DetBenchTrain(self.network, create_labeler=True).train()
        self.optimiser = _optimiser(self.network, plan.peak_rate)
        self.average = {key: tensor.detach().clone() for key, tensor in self.network.state_dict().items()}

    def advance(self) -> None:
        """Take one step."""
        import torch

        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.plan)
        images, targets = self._batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.bench(images, targets)["loss"].float()
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise ToolError(f"step {self.step}: the loss is {self.loss}", remedy="start again with a lower --peak-rate")
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
        self.optimiser.step()
        self._follow()
        self.step += 1

    def _batch(self) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        import torch

        samples = [self.sampler.draw() for _ in range(self.plan.batch)]
        images = torch.from_numpy(np.stack([sample.image for sample in samples]))
        boxes = [torch.from_numpy(sample.boxes) for sample in samples]
        labels = [torch.from_numpy(sample.labels) for sample in samples]
        return images.contiguous(memory_format=torch.channels_last), {"bbox": boxes, "cls": labels}

    def _follow(self) -> None:
        """Move the average of all weights towards the network's, quickly at first."""
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        for key, tensor in self.network.state_dict().items():
            if tensor.is_floating_point():
                self.average[key].mul_(decay).add_(tensor, alpha=1 - decay)

    def state(self) -> dict[str, Any]:
        """Everything that decides the next step, as tensors and plain values."""
        import torch

        return {
            "plan": asdict(self.plan),
            "step": self.step,
            "loss": self.loss,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "sampler": self.sampler.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        import torch

        self.step, self.loss, self.average = state["step"], state["loss"], dict(state["average"])
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.sampler.rng.bit_generator.state = state["sampler"]
        torch.set_rng_state(state["torch"])


def _network(size: int) -> torch.nn.Module:
    import torch
    from effdet import EfficientDet
    from effdet.config import get_efficientdet_config

    config = get_efficientdet_config(ARCHITECTURE)
    config.image_size, config.num_classes = (size, size), len(KINDS)
    network = EfficientDet(config, pretrained_backbone=False).to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = _BATCH_NORM_MOMENTUM
    return network


def _optimiser(network: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    import torch

    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    offsets = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": _WEIGHT_DECAY}, {"params": offsets, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, rate, foreach=True)


def widen_heads(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Widen the class head from the ten trained classes to the 90 of COCO.

    The trained rows go to their category ids. The others get small noise and a low bias, so that their logits are
    plausible and rarely win.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        State dict of a network of ten classes.

    Returns
    -------
    widened : dict of str to torch.Tensor
        The same keys; the last layer of the class head has 810 channels, anchor by anchor.
    """
    import torch

    generator = torch.Generator().manual_seed(WIDENING_SEED)
    widened = {key: tensor.contiguous() for key, tensor in state.items()}
    layer = "class_net.predict.conv_pw"
    old = widened[f"{layer}.weight"].unflatten(0, (ANCHORS, len(KINDS)))
    noise = torch.randn(ANCHORS, CLASSES, *old.shape[2:], generator=generator)
    widened[f"{layer}.weight"] = _with_trained_rows(noise * old.std() * 0.25, old)
    old = widened[f"{layer}.bias"].unflatten(0, (ANCHORS, len(KINDS)))
    low = old.mean(1, keepdim=True).repeat(1, CLASSES) - 2.0
    widened[f"{layer}.bias"] = _with_trained_rows(low + 0.3 * torch.randn(low.shape, generator=generator), old)
    return widened


def _with_trained_rows(rows: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    rows[:, [number - 1 for number in CATEGORIES.values()]] = trained
    return rows.flatten(0, 1)


def load_tensors(path: Path) -> Mapping[str, Any]:
    """
    Read a dict of tensors and plain values; nothing in the file is executed.

    Raises
    ------
    NoDataError
        If there is no such file.
    WrongDataError
        If it is something else, or damaged.
    """
    import torch

    if not path.is_file():
        raise NoDataError(f"{path} does not exist", required="a file written by torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WrongDataError(f"{path} cannot be read: {error}", required="a dict of tensors by torch.save") from error
    if not isinstance(content, Mapping):
        raise WrongDataError(f"{path} holds a {type(content).__name__}", required="a dict of tensors by torch.save")
    return content


def _save(content: Mapping[str, Any], path: Path) -> None:
    """Write a file that is either whole or absent."""
    import torch

    partial = path.with_name(f"{path.name}.partial")
    torch.save(content, partial)
    partial.replace(path)
