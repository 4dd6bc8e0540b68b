"""The evaluation set of a trial: the Shapes kit or its first images, and their spec."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support.dataset import CocoDataset, open_dataset
from support.spec import Dataset, load_spec

__all__ = ["write_world"]

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGES = 16

# AP as the checkpoint itself has it on these images: torch 2.14.1 on a CPU with this suite's own post-processing.
SPEC = """
extends = "shapes_d0"
name = "shapes_{images}"
batch_sizes = [1]

[dataset]
root = {root}
image_count = {images}
annotation_digest = "{annotations}"
size_digest = "{sizes}"
source = "the first images of the kit"

[accuracy]
ladder_batch = 1
quoted_ap = 43.8723

# There is no second batch size to compare with.
[clauses.batch_invariance]
modes = ["results"]

[clauses.dataset_pins.limits.images]
value = {images}
unit = "images"
direction = "min"
source = "the first images of the kit"
date = 2026-11-24
"""

WHOLE_SPEC = """
extends = "shapes_d0"
name = "shapes_whole"

[dataset]
root = {root}
"""


def write_world(folder: Path, *, whole: bool = False) -> None:
    """
    Write images and annotations into ``data``, and their spec as ``spec.toml``.

    Parameters
    ----------
    folder : Path
        Where to write; there must be no ``data`` yet.
    whole : bool
        All images of the kit at all batch sizes, instead of the first 16 at batch size 1.
    """
    kit = load_spec("shapes_d0").dataset
    root = folder / "data"
    if whole:
        shutil.copytree(CHECKOUT / kit.root, root)
        spec = WHOLE_SPEC.format(root=json.dumps(str(root)))
    else:
        dataset = open_dataset(CHECKOUT / kit.root, kit).limited(IMAGES)
        _write_data(dataset, root, kit)
        spec = _spec(dataset, root)
    (folder / "spec.toml").write_text(spec, encoding="utf-8")


def _write_data(dataset: CocoDataset, root: Path, kit: Dataset) -> None:
    (root / kit.images).mkdir(parents=True)
    for image in dataset.images:
        shutil.copy(image.path, root / kit.images)
    (root / kit.annotations).parent.mkdir(parents=True)
    (root / kit.annotations).write_text(json.dumps(dataset.truth.coco), encoding="utf-8")


def _spec(dataset: CocoDataset, root: Path) -> str:
    digests = {"annotations": dataset.annotation_digest, "sizes": dataset.size_digest}
    # A JSON string is a TOML string too.
    return SPEC.format(images=IMAGES, root=json.dumps(str(root)), **digests)
