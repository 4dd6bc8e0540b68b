import gzip
import json
from copy import deepcopy

import pytest

from support.dataset import GroundTruth, open_dataset
from support.errors import WrongDataError
from support.evidence import truth as module
from support.evidence.truth import load_truth, save_truth, truth_digests
from support.spec import load_spec
from unit.evidence.bundles import KIT


@pytest.fixture
def path(world, tmp_path):
    save_truth(tmp_path / "truth.json.gz", world.truth)
    return tmp_path / "truth.json.gz"


def test_digests_are_those_of_the_opened_data_set():
    dataset = open_dataset(KIT, load_spec("shapes_d0").dataset).limited(7)
    assert truth_digests(dataset.truth) == (dataset.annotation_digest, dataset.size_digest)


def test_any_change_of_a_box_changes_the_digest(world):
    coco = deepcopy(dict(world.truth.coco))
    coco["annotations"][3]["bbox"][0] += 1e-9
    assert truth_digests(GroundTruth(coco, world.truth.category_ids)) != truth_digests(world.truth)


def test_names_in_any_script_survive(world, tmp_path):
    coco = {**world.truth.coco, "categories": [{"id": 1, "name": "三角形 <script>\x1b[31m\n"}], "annotations": []}
    save_truth(tmp_path / "t", GroundTruth(coco, (1,)))
    assert load_truth(tmp_path / "t").coco == coco


@pytest.mark.parametrize("data", [b"", b"not gzip", gzip.compress(b"{", mtime=0)])
def test_a_file_that_is_no_compressed_json_is_damaged(path, data):
    path.write_bytes(data)
    with pytest.raises(WrongDataError, match=r"truth.json.gz is damaged"):
        load_truth(path)


def test_a_file_cut_short_is_damaged(path):
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WrongDataError, match="it ends too early"):
        load_truth(path)


def test_a_file_that_unpacks_to_more_than_any_data_set_is_not_unpacked(path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 5000)
    with pytest.raises(WrongDataError, match="unpacks to more than 5000 bytes"):
        load_truth(path)


def test_annotations_of_an_image_that_is_not_there_are_refused(world, path):
    coco = {**world.truth.coco, "images": world.truth.coco["images"][1:]}
    path.write_bytes(gzip.compress(json.dumps(coco).encode()))
    with pytest.raises(WrongDataError, match=r"truth.json.gz: annotations\[\d+\].image_id: no image has the id"):
        load_truth(path)
