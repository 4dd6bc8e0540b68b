"""effdet's own loader, network and post-processing: the norm that the decoder is tested and timed against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.detections import Detections
from support.errors import UsageError
from support.heads import BOX_CODES, Heads
from support.spec import Model

__all__ = ["EffdetDecoder", "EffdetImage", "differences", "effdet_heads"]

#: effdet 0.4.1, anchors.py, ``generate_detections``; not configurable.
IOU_THRESHOLD = 0.5

#: Two good implementations of exp differ by one unit in the last place; these are what that can grow to.
SCORE_ULPS = 2
BOX_PIXELS = 1e-3
IOU_NEARNESS = 1e-5


@dataclass(frozen=True, eq=False)
class EffdetImage:
    """
    What effdet finds on one image.

    Attributes
    ----------
    detections : Detections
        From effdet's functions, in the order of our rule where effdet leaves it to chance (see `EffdetDecoder.decode`).
    rows : ndarray of float32, shape (N, 6)
        What ``DetBenchPredict`` itself returned, without its padding: (x0, y0, x1, y1, score, category).
    tolerance : ndarray of float64, shape (N,)
        How far each box may be off in image pixels: `BOX_PIXELS` of the network's pixels, more only for a box that
        reaches so far beyond the image that float32 itself is coarser.
    near_threshold : bool
        Whether suppression hangs on an overlap so near the threshold that rounding may decide.
    """

    detections: Detections
    rows: NDArray[np.float32]
    tolerance: NDArray[np.float64]
    near_threshold: bool

    @property
    def settled(self) -> bool:
        """Whether ``DetBenchPredict`` gave these very detections, bit for bit: always, unless scores are equal."""
        ours = self.detections
        columns = np.column_stack([ours.boxes, ours.scores, ours.category_ids.astype(np.float32)])
        return np.array_equal(columns, self.rows)


class EffdetDecoder:
    """
    Runs effdet's ``DetBenchPredict`` on given heads.

    Parameters
    ----------
    model : support.spec.Model
        Gives heads, anchors and limits.

    Raises
    ------
    UsageError
        If the spec asks for another IoU threshold than the only one effdet has.
    """

    def __init__(self, model: Model) -> None:
        from effdet.bench import DetBenchPredict

        if model.iou_threshold != IOU_THRESHOLD:
            raise UsageError(f"model.iou_threshold is {model.iou_threshold}", required=f"effdet knows {IOU_THRESHOLD}")
        config = _config(model)
        config.max_det_per_image = model.max_detections
        self._network = _GivenHeads(config)
        self._bench = DetBenchPredict(self._network)
        # torch.topk takes no more points than there are; the decoder takes what there is.
        self._bench.max_detection_points = min(model.max_points, len(self._bench.anchors.boxes) * model.classes)

    def run(self, heads: Heads, scales: NDArray[np.float64], sizes: NDArray[np.int32]) -> Any:
        """
        Decode a batch exactly as effdet does; the arguments are those of `support.detections.Decoder.decode`.

        Returns
        -------
        rows : torch.Tensor of float32, shape (B, max_detections, 6)
            (x0, y0, x1, y1, score, category), filled up with rows of zeros.
        """
        import torch

        self._network.heads = _tensors(heads.classes), _tensors(heads.boxes)
        information = {
            "img_scale": torch.from_numpy(scales.astype(np.float32)),
            "img_size": torch.from_numpy(sizes.astype(np.int64)),
        }
        with torch.inference_mode():
            return self._bench(torch.empty(heads.batch), information)

    def decode(
        self, heads: Heads, image_ids: NDArray[np.int64], scales: NDArray[np.float64], sizes: NDArray[np.int32]
    ) -> tuple[EffdetImage, ...]:
        """
        Decode a batch with effdet's functions, but with a sort that keeps equal logits in the order of their index.

        effdet takes its points with ``torch.topk``, which picks and orders equal values as it likes, and orders what
        is left with a sort that need not be stable. With both made stable, there is one result to compare with.
        """
        return tuple(
            self._image(heads.row(slot), image_ids[slot : slot + 1], scales[slot : slot + 1], sizes[slot : slot + 1])
            for slot in range(heads.batch)
        )

    def _image(
        self, heads: Heads, image_id: NDArray[np.int64], scales: NDArray[np.float64], sizes: NDArray[np.int32]
    ) -> EffdetImage:
        rows = self.run(heads, scales, sizes)[0].numpy()
        scale = scales.astype(np.float32)
        points = self._points(heads, (sizes / scale)[0].astype(np.float32))
        limit = self._bench.max_det_per_image
        kept, more, less = (points.kept(IOU_THRESHOLD + change)[:limit] for change in (0, IOU_NEARNESS, -IOU_NEARNESS))
        coarseness = 4 * np.finfo(np.float32).eps * points.reach[kept]
        return EffdetImage(
            Detections(
                images=image_id,
                image_ids=np.repeat(image_id, len(kept)),
                boxes=points.boxes.numpy()[kept] * scale,
                scores=points.scores.numpy()[kept],
                category_ids=(points.labels.numpy()[kept] + 1).astype(np.int32),
                anchors=points.anchors[kept].astype(np.int32),
            ),
            rows=rows[rows[:, 5] > 0],
            tolerance=np.maximum(BOX_PIXELS, coarseness) * max(1.0, float(scales[0])),
            near_threshold=not (np.array_equal(kept, more) and np.array_equal(kept, less)),
        )

    def _points(self, heads: Heads, corner: NDArray[np.float32]) -> _Points:
        import torch
        from effdet.anchors import clip_boxes_xyxy, decode_box_outputs

        classes = self._bench.num_classes
        logits, codes = _flattened(heads.classes, classes).reshape(-1), _flattened(heads.boxes, BOX_CODES)
        flats = _stable_best(logits, self._bench.max_detection_points)
        anchors = flats // classes
        boxes = decode_box_outputs(
            torch.from_numpy(codes[anchors]), self._bench.anchors.boxes[anchors], output_xyxy=True
        )
        return _Points(
            anchors=anchors,
            labels=torch.from_numpy(flats % classes),
            scores=torch.from_numpy(logits[flats]).sigmoid(),
            boxes=clip_boxes_xyxy(boxes, torch.from_numpy(corner)),
            reach=boxes.abs().amax(dim=1).double().numpy(),
        )


@dataclass(frozen=True, eq=False)
class _Points:
    """The best points of one image, best first, as tensors; boxes are clipped, `reach` is from before."""

    anchors: NDArray[np.int64]
    labels: Any
    scores: Any
    boxes: Any
    reach: NDArray[np.float64]

    def kept(self, threshold: float) -> NDArray[np.int64]:
        from torchvision.ops import batched_nms

        free = np.sort(batched_nms(self.boxes, self.scores, self.labels, threshold).numpy())
        return free[np.argsort(-self.scores.numpy()[free], kind="stable")]


class _GivenHeads:
    """A network whose answer is known."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.heads: Any = None

    def __call__(self, _: Any) -> Any:
        return self.heads


def effdet_heads(
    model: Model, weights: Path, images: Sequence[Path]
) -> tuple[Heads, NDArray[np.float64], NDArray[np.int32]]:
    """
    Compute the heads of some images with effdet alone.

    Parameters
    ----------
    model : support.spec.Model
        Gives the architecture.
    weights : Path
        A plain state dict of it.
    images : sequence of Path
        B image files.

    Returns
    -------
    heads : Heads
        Of the images, in their order.
    scales : ndarray of float64, shape (B,)
        Image pixels per network pixel.
    sizes : ndarray of int32, shape (B, 2)
        Width and height of each image in pixels.
    """
    import torch
    from effdet.efficientdet import EfficientDet

    network = EfficientDet(_config(model), pretrained_backbone=False).eval()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    loaded = [_loaded(model, path) for path in images]
    with torch.inference_mode():
        heads = network(torch.from_numpy(np.stack([pixels for pixels, _, _ in loaded])))
    classes, boxes = (tuple(level.numpy() for level in kind) for kind in heads)
    scales, sizes = [scale for _, scale, _ in loaded], [size for _, _, size in loaded]
    return Heads(classes, boxes), np.asarray(scales, np.float64), np.asarray(sizes, np.int32)


def _config(model: Model) -> Any:
    from effdet import get_efficientdet_config

    config = get_efficientdet_config(model.architecture)
    config.image_size = (model.image_size, model.image_size)
    config.num_classes = model.classes
    return config


def _loaded(model: Model, path: Path) -> tuple[NDArray[np.float32], float, tuple[int, int]]:
    from effdet.data.transforms import transforms_coco_eval

    with Image.open(path) as file:
        image = file.convert("RGB")
    pixels, facts = transforms_coco_eval(model.image_size, use_prefetcher=True, mean=model.mean)(image, {})
    mean, std = (np.asarray(each, np.float32)[:, None, None] * 255 for each in (model.mean, model.std))
    return (pixels.astype(np.float32) - mean) / std, facts["img_scale"], image.size


def _tensors(heads: Sequence[NDArray[np.float32]]) -> list[Any]:
    import torch

    return [torch.from_numpy(np.ascontiguousarray(head)) for head in heads]


def _flattened(heads: Sequence[NDArray[np.float32]], inner: int) -> NDArray[np.float32]:
    # The order of effdet 0.4.1, bench.py, _post_process, for a batch of one.
    return np.concatenate([head[0].transpose(1, 2, 0).reshape(-1, inner) for head in heads])


def _stable_best(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    cut = np.partition(values, -count)[-count]
    candidates = np.flatnonzero(values >= cut)
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def differences(ours: Detections, theirs: Sequence[EffdetImage]) -> list[str]:
    """
    Compare detections with effdet's, image by image.

    The same anchors and classes must come in the same order, with scores within `SCORE_ULPS` units in the last place
    and boxes within each one's tolerance. Where suppression hangs on rounding, the scores alone are compared.

    Parameters
    ----------
    ours : Detections
        Of the same images in the same order.
    theirs : sequence of EffdetImage
        From `EffdetDecoder.decode`.

    Returns
    -------
    differences : list of str
        The first difference of each image; empty if there is none.
    """
    ids = [int(image.detections.images[0]) for image in theirs]
    if not ids or ours.images.tolist() != ids:
        return [f"detections of the images {ours.images.tolist()} instead of {ids}"]
    found = [(each, _difference(ours.of(each), image)) for each, image in zip(ids, theirs, strict=True)]
    return [f"image {each}: {text}" for each, text in found if text]


def _difference(ours: Detections, theirs: EffdetImage) -> str:
    wanted = theirs.detections
    if len(ours.scores) != len(wanted.scores):
        return f"{len(ours.scores)} boxes instead of {len(wanted.scores)}"
    if np.any(_ulps(ours.scores, wanted.scores) > SCORE_ULPS):
        return f"scores differ by {_ulps(ours.scores, wanted.scores).max()} units in the last place"
    if theirs.near_threshold:
        return ""
    if not np.array_equal(ours.anchors, wanted.anchors) or not np.array_equal(ours.category_ids, wanted.category_ids):
        return "other anchors or classes, or in another order"
    apart = np.abs(ours.boxes.astype(np.float64) - wanted.boxes).max(axis=1, initial=0)
    return f"boxes are up to {apart.max()} px apart" if not np.all(apart <= theirs.tolerance) else ""


def _ulps(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.int64]:
    # Scores are not negative, so their bits count the numbers between them.
    return np.abs(one.view(np.int32).astype(np.int64) - other.view(np.int32))
