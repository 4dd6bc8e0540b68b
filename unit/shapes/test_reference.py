import json
import shutil
from pathlib import Path

import pytest

from support.artifacts import file_sha256
from support.errors import NoDataError, UsageError, WrongDataError
from support.progress import SilentProgress
from support.shapes.__main__ import main
from support.shapes.reference import measure, write_reference
from support.shapes.validation import ANNOTATIONS, IMAGES

torch = pytest.importorskip("torch", reason="needs torch: pip install '.[export]'")
pytest.importorskip("effdet", reason="needs effdet: pip install '.[export]'")
# effdet decorates its post-processing with torch.jit.script when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

KIT = Path(__file__).resolve().parents[2] / "fixtures/data/shapes"
CHECKPOINT = KIT / "shapes_d0.pth"
# Of the first four images, measured by a script of its own before this module was written.
AP_OF_FOUR = {
    "AP": 0.5425,
    "AP50": 0.6842,
    "AP75": 0.6085,
    "APs": 0.4670,
    "APm": 0.7314,
    "APl": 0.8000,
    "AR100": 0.6593,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # Threads that wait for each other on a busy machine take longer than one alone.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def root(tmp_path):
    return a_data_set(tmp_path / "four", images=4)


def a_data_set(root, images):
    document = json.loads((KIT / ANNOTATIONS).read_text(encoding="utf-8"))
    document["images"] = document["images"][:images]
    ids = {record["id"] for record in document["images"]}
    document["annotations"] = [item for item in document["annotations"] if item["image_id"] in ids]
    (root / IMAGES).mkdir(parents=True)
    (root / ANNOTATIONS).parent.mkdir()
    (root / ANNOTATIONS).write_text(json.dumps(document), encoding="utf-8")
    for record in document["images"]:
        shutil.copy(KIT / IMAGES / record["file_name"], root / IMAGES)
    return root


def test_a_written_reference_has_the_layout_and_values_of_the_committed_one(root, tmp_path, capsys):
    write_reference(CHECKPOINT, root, tmp_path / "reference.json", SilentProgress())
    measured = json.loads((tmp_path / "reference.json").read_text(encoding="utf-8"))
    committed = json.loads((KIT / "reference.json").read_text(encoding="utf-8"))
    assert [(key, type(value)) for key, value in measured.items()] == [(k, type(v)) for k, v in committed.items()]
    for part in ("ap", "ap_by_category", "made_with"):
        assert list(measured[part]) == list(committed[part])
    assert measured["checkpoint_sha256"] == committed["checkpoint_sha256"]
    assert measured["annotations_sha256"] == file_sha256(root / ANNOTATIONS)
    counts = [measured[key] for key in ("images", "annotations", "detections", "foreign_category_detections")]
    assert counts == [4, 15, 400, 1]
    assert {key: measured["ap"][key] for key in AP_OF_FOUR} == pytest.approx(AP_OF_FOUR, abs=2e-3)
    assert measured["ap_by_category"]["34"] == -1  # none of the four shows a hexagon
    assert capsys.readouterr().out == ""


def test_the_committed_reference_belongs_to_the_committed_kit():
    committed = json.loads((KIT / "reference.json").read_text(encoding="utf-8"))
    assert committed["checkpoint_sha256"] == file_sha256(CHECKPOINT)
    assert committed["annotations_sha256"] == file_sha256(KIT / ANNOTATIONS)
    assert committed["images"] == len(list((KIT / IMAGES).iterdir()))


def test_a_missing_checkpoint_is_reported(root):
    with pytest.raises(NoDataError, match=r"none.pth does not exist"):
        measure(root / "none.pth", root, SilentProgress())


def test_weights_of_another_architecture_are_refused(root, tmp_path):
    state = torch.load(CHECKPOINT, weights_only=True)
    state.pop("backbone.conv_stem.weight")
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(WrongDataError, match=r"short.pth: (.|\n)*conv_stem(.|\n)*required: the weights of tf"):
        measure(tmp_path / "short.pth", root, SilentProgress())


def test_weights_that_detect_nothing_are_refused(tmp_path):
    root = a_data_set(tmp_path / "one", images=1)
    state = torch.load(CHECKPOINT, weights_only=True)
    state["class_net.predict.conv_pw.bias"].fill_(-1000.0)
    torch.save(state, tmp_path / "blind.pth")
    with pytest.raises(WrongDataError, match=r"blind.pth detects nothing"):
        measure(tmp_path / "blind.pth", root, SilentProgress())


def test_missing_annotations_are_reported(tmp_path):
    with pytest.raises(NoDataError, match=r"instances_val2017.json does not exist"):
        measure(CHECKPOINT, tmp_path, SilentProgress())


@pytest.mark.parametrize("text", ["{", '{"images": [{"id": 1}], "annotations": [{"id": 1}]}', "[]"])
def test_damaged_annotations_are_refused(root, text):
    (root / ANNOTATIONS).write_text(text)
    with pytest.raises(WrongDataError, match=r"instances_val2017.json cannot be read"):
        measure(CHECKPOINT, root, SilentProgress())


def test_a_missing_image_is_reported(root):
    first = min((root / IMAGES).iterdir())
    first.unlink()
    with pytest.raises(NoDataError, match=f"{first.name} does not exist"):
        measure(CHECKPOINT, root, SilentProgress())


def test_a_damaged_image_is_refused(root):
    first = min((root / IMAGES).iterdir())
    first.write_bytes(first.read_bytes()[:1000])
    with pytest.raises(WrongDataError, match=f"{first.name} cannot be read"):
        measure(CHECKPOINT, root, SilentProgress())


def test_a_target_in_no_folder_is_refused(root, tmp_path):
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        write_reference(CHECKPOINT, root, tmp_path / "nowhere/reference.json", SilentProgress())


def test_the_command_reports_a_missing_checkpoint(tmp_path, capsys):
    arguments = ["reference", str(tmp_path / "none.pth"), str(KIT), str(tmp_path / "reference.json")]
    assert main(arguments) == 1
    assert "none.pth does not exist" in capsys.readouterr().err
