"""Small evaluation sets for the self-test: some images of the Shapes kit, under new ids and in another order."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from support.dataset import open_dataset
from support.spec import AcceptanceSpec, load_spec

__all__ = ["CHECKOUT", "KIT_SPEC", "World", "quoting", "world"]

KIT_SPEC = "shapes_d0"
CHECKOUT = Path(__file__).resolve().parents[2]
#: Ids of a world begin here; those of the kit are smaller.
FIRST_ID = 1_000_001


@dataclass(frozen=True)
class World:
    """An evaluation set in COCO layout, and the spec that pins it."""

    root: Path
    spec: AcceptanceSpec
    images: int


def world(
    folder: Path, *, seed: int, images: int, batch_sizes: tuple[int, ...], first: int | None = None, **changes: Any
) -> World:
    """
    Make an evaluation set of some images of the kit.

    Which images, and their ids, which decide their order and so their neighbours in a batch, depend on the seed alone.

    Parameters
    ----------
    folder : Path
        Made here; images are hard links or copies of the kit's.
    seed : int
        Of the choice.
    images : int
        How many.
    batch_sizes : tuple of int
        Of the spec; the stage ladder has the last, unless `changes` say otherwise.
    first : int, optional
        Id in the kit of an image that must be there, and first.
    changes
        Other values of the spec's table ``accuracy``.
    """
    kit = load_spec(KIT_SPEC)
    source = CHECKOUT / kit.dataset.root
    truth = json.loads((source / kit.dataset.annotations).read_text(encoding="utf-8"))
    ids = np.random.default_rng(seed).permutation([image["id"] for image in truth["images"]]).tolist()
    if first is not None:
        ids = [first, *(key for key in ids if key != first)]
    new_ids = {key: FIRST_ID + rank for rank, key in enumerate(ids[:images])}
    _write_annotations(folder / kit.dataset.annotations, truth, new_ids)
    _link_images(source / kit.dataset.images, folder / kit.dataset.images, truth, new_ids)
    return World(folder, _spec(kit, folder, batch_sizes, images, changes), images)


def _write_annotations(path: Path, truth: Mapping[str, Any], new_ids: Mapping[int, int]) -> None:
    images = [{**image, "id": new_ids[image["id"]]} for image in truth["images"] if image["id"] in new_ids]
    annotations = [
        {**item, "image_id": new_ids[item["image_id"]]} for item in truth["annotations"] if item["image_id"] in new_ids
    ]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**truth, "images": images, "annotations": annotations}), encoding="utf-8")


def _link_images(source: Path, target: Path, truth: Mapping[str, Any], new_ids: Mapping[int, int]) -> None:
    target.mkdir(parents=True)
    for image in truth["images"]:
        if image["id"] in new_ids:
            (target / image["file_name"]).write_bytes((source / image["file_name"]).read_bytes())


def _spec(
    kit: AcceptanceSpec, root: Path, batch_sizes: tuple[int, ...], images: int, changes: Mapping[str, Any]
) -> AcceptanceSpec:
    tables = kit.model_dump(mode="json")
    dataset = open_dataset(root, kit.dataset)
    pins = {"annotation_digest": dataset.annotation_digest, "size_digest": dataset.size_digest}
    tables |= {"name": "selftest", "batch_sizes": list(batch_sizes)}
    tables["dataset"] |= {"root": str(root), "image_count": images, **pins}
    tables["checkpoint"]["path"] = os.fspath(CHECKOUT / kit.checkpoint.path)
    tables["accuracy"] |= {"ladder_batch": batch_sizes[-1], **changes}
    tables["clauses"]["dataset_pins"]["limits"]["images"]["value"] = images
    return AcceptanceSpec.model_validate(tables)


def quoting(spec: AcceptanceSpec, ap: float) -> AcceptanceSpec:
    """
    Let a spec quote the AP that the checkpoint reaches on its images, as the kit's own spec does.

    Parameters
    ----------
    spec : AcceptanceSpec
        Of a world.
    ap : float
        In points.
    """
    tables = spec.model_dump(mode="json")
    tables["accuracy"]["quoted_ap"] = ap
    tables["clauses"]["accuracy_guide_drop"]["limits"]["ap"]["reference"] = ap
    tables["clauses"]["accuracy_guide_floor"]["limits"]["ap"]["value"] = int(ap * 10) / 10
    return AcceptanceSpec.model_validate(tables)
