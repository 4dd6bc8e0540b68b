"""The evaluation set of a trial: the first images of the Shapes kit, and their spec."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support.dataset import CocoDataset, open_dataset
from support.spec import load_spec

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


def write_world(folder: Path) -> None:
    """Write the first images of the kit into ``data``, and their spec as ``spec.toml``."""
    kit = load_spec("shapes_d0").dataset
    dataset = open_dataset(CHECKOUT / kit.root, kit).limited(IMAGES)
    root = folder / "data"
    (root / kit.images).mkdir(parents=True)
    for image in dataset.images:
        shutil.copy(image.path, root / kit.images)
    (root / kit.annotations).parent.mkdir(parents=True)
    (root / kit.annotations).write_text(json.dumps(dataset.truth.coco), encoding="utf-8")
    (folder / "spec.toml").write_text(_spec(dataset, root), encoding="utf-8")


def _spec(dataset: CocoDataset, root: Path) -> str:
    digests = {"annotations": dataset.annotation_digest, "sizes": dataset.size_digest}
    # A JSON string is a TOML string too.
    return SPEC.format(images=IMAGES, root=json.dumps(str(root)), **digests)
