"""
Reference figures of a checkpoint, measured with the code of effdet and pycocotools alone.

Nothing here uses the suite's own reading, decoding or scoring, so that an error in those cannot hide in the figures
they are held against.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.artifacts import file_sha256
from support.errors import NoDataError, UsageError, WrongDataError
from support.progress import Progress
from support.shapes.training import ARCHITECTURE, load_tensors
from support.shapes.validation import ANNOTATIONS, IMAGES

if TYPE_CHECKING:
    import torch

__all__ = ["measure", "write_reference"]

#: Names of pycocotools' twelve figures, in the order of `COCOeval.stats`.
_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def measure(checkpoint: Path, root: Path, progress: Progress) -> dict[str, Any]:
    """
    Measure a checkpoint on a data set in COCO layout.

    Parameters
    ----------
    checkpoint : Path
        State dict that loads strictly into ``tf_efficientdet_d0``.
    root : Path
        Folder with ``val2017`` and ``annotations/instances_val2017.json``.
    progress : Progress
        Told of every image.

    Returns
    -------
    figures : dict
        Hashes, counts, versions, and AP and AR as fractions of 1, -1 where pycocotools has nothing to average.
        ``foreign_category_detections`` counts detections of categories the data set does not have.

    Raises
    ------
    NoDataError
        If the checkpoint, the annotations or an image is missing.
    WrongDataError
        If one of them is damaged, or the checkpoint is of another architecture.
    """
    truth = _truth(root / ANNOTATIONS)
    bench = _bench(checkpoint)
    image_ids = sorted(truth.imgs)
    rows: list[list[float]] = []
    with progress.step("measuring the reference") as advance:
        for done, image_id in enumerate(image_ids, 1):
            rows.extend(_detections(bench, root / IMAGES, truth.imgs[image_id]))
            advance(done, len(image_ids))
    if not rows:
        raise WrongDataError(f"{checkpoint} detects nothing", required="finite, trained weights")
    known = set(truth.getCatIds())
    return {
        "checkpoint_sha256": file_sha256(checkpoint),
        "annotations_sha256": file_sha256(root / ANNOTATIONS),
        "images": len(image_ids),
        "annotations": len(truth.anns),
        "detections": len(rows),
        "foreign_category_detections": sum(int(row[6]) not in known for row in rows),
        **_figures(truth, np.array(rows)),
        "made_with": _versions(),
    }


def _bench(checkpoint: Path) -> torch.nn.Module:
    from effdet import DetBenchPredict, EfficientDet
    from effdet.config import get_efficientdet_config

    weights = load_tensors(checkpoint)
    network = EfficientDet(get_efficientdet_config(ARCHITECTURE), pretrained_backbone=False)
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise WrongDataError(f"{checkpoint}: {error}", required=f"the weights of {ARCHITECTURE}") from error
    return DetBenchPredict(network).eval()


def _truth(annotations: Path) -> Any:
    from pycocotools.coco import COCO

    if not annotations.is_file():
        raise NoDataError(f"{annotations} does not exist", remedy="python -m support.shapes validation OUT makes a set")
    try:
        with _quiet():
            return COCO(str(annotations))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise WrongDataError(f"{annotations} cannot be read: {error!r}", required="COCO annotations") from error


def _detections(bench: torch.nn.Module, folder: Path, info: Mapping[str, Any]) -> Iterator[list[float]]:
    """Yield one row for each detection: image id, x, y, width, height in image pixels, score, category id."""
    import torch

    image, scale = _network_input(folder / info["file_name"])
    size = torch.tensor([[info["width"], info["height"]]], dtype=torch.float32)
    with torch.inference_mode():
        found = bench(image, {"img_scale": torch.tensor([scale]), "img_size": size})[0].numpy()
    for x0, y0, x1, y1, score, category in found:
        if score > 0:  # effdet fills up with rows of zeros
            yield [info["id"], float(x0), float(y0), float(x1 - x0), float(y1 - y0), float(score), int(category)]


def _network_input(path: Path) -> tuple[torch.Tensor, float]:
    import torch
    from effdet.config import get_efficientdet_config
    from effdet.data.transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ResizePad, resolve_fill_color

    resize = ResizePad(get_efficientdet_config(ARCHITECTURE).image_size[0], "bilinear", resolve_fill_color("mean"))
    image, geometry = resize(_read(path), {})
    mean, std = (np.array(figure, np.float32) * 255 for figure in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    pixels = (np.asarray(image).astype(np.float32) - mean) / std
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()), geometry["img_scale"]


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise NoDataError(f"{path} does not exist", required="every image of the annotations") from error
    except OSError as error:
        raise WrongDataError(f"{path} cannot be read: {error}", required="a JPEG") from error


def _figures(truth: Any, rows: NDArray[np.float64]) -> dict[str, Any]:
    from pycocotools.cocoeval import COCOeval

    with _quiet():
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Axes: IoU threshold, recall, category, size class (0: all), detections an image (2: at most 100).
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    categories = {str(number): _mean(precision[:, :, place]) for place, number in enumerate(evaluation.params.catIds)}
    figures = dict(zip(_FIGURES, map(float, evaluation.stats), strict=True))
    return {"ap": figures, "ap_by_category": categories}


def _mean(precision: NDArray[np.float64]) -> float:
    measured = precision[precision > -1]
    return float(np.mean(measured)) if measured.size else -1.0


def _versions() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__, "effdet": version("effdet"), "pycocotools": version("pycocotools")}


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Keep pycocotools from printing."""
    return contextlib.redirect_stdout(io.StringIO())


def write_reference(checkpoint: Path, root: Path, target: Path, progress: Progress) -> Mapping[str, Any]:
    """
    Measure a checkpoint on a whole data set, write the figures as JSON and return them.

    Raises
    ------
    UsageError
        If the folder of `target` does not exist.
    NoDataError, WrongDataError
        As `measure` does.
    """
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder", remedy="make it first, or name another target")
    figures = measure(checkpoint, root, progress)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    partial.replace(target)
    return figures
