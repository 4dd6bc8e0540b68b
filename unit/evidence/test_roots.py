import getpass
import platform
from pathlib import Path

import pytest

from support.evidence.roots import Roots, roots_of_this_host

ROOTS = Roots(
    {"checkout": Path("/work/suite"), "artifacts": Path("/work/suite/artifacts"), "coco": Path("/data/my coco")},
    home=Path("/home/alice"),
    words={"rack7.example.org": "{host}", "rack7": "{host}", "alice": "{user}"},
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/work/suite/model/d0.pth is missing", "{checkout}/model/d0.pth is missing"),
        ("/work/suite/artifacts/om/1", "{artifacts}/om/1"),
        ("/work/suite", "{checkout}"),
        ("--coco-root=/data/my coco/val2017", "--coco-root={coco}/val2017"),
        ("'/work/suite/a', \"/work/suite/b\"", "'{checkout}/a', \"{checkout}/b\""),
        ("/work/suite2/x.pth", "{elsewhere}/x.pth"),
        ("/home/alice/models/d0.pth", "{elsewhere}/models/d0.pth"),
        ("-f/home/bob/secret/key", "-f{elsewhere}/secret/key"),
        ("/srv/team/bob/d0.pth: no such file", "{elsewhere}/d0.pth: no such file"),
        ("file:///srv/team/bob/d0.pth", "file:{elsewhere}/d0.pth"),
        ("alice@rack7.example.org (rack7)", "{user}@{host} ({host})"),
        ("https://alice:hunter2@store.example.org/x", "https://{secret}@store.example.org/x"),
        ("--api-key=abc123 UPLOAD_TOKEN=xyz", "--api-key={secret} UPLOAD_TOKEN={secret}"),
    ],
)
def test_what_tells_whose_machine_it_was_is_replaced(text, told):
    assert ROOTS.hide(text) == told


@pytest.mark.parametrize(
    "text",
    [
        "9.9 images/s, 1/2, +/-1, and/or, candidate / reference",
        "atc of /usr/local/Ascend/ascend-toolkit/latest on /dev/davinci0",
        "malice and rack70 are other words",
        "https://www.hiascend.com/document/detail/zh",
        "model/d0_bs{batch}.om",
        "image 139, category 1: largest change of score 0.5 -> 0.4",
    ],
)
def test_what_tells_nothing_is_kept(text):
    assert ROOTS.hide(text) == text


def test_a_path_with_its_links_followed_is_known_too(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    roots = Roots({"coco": tmp_path / "link"})
    assert roots.hide(f"{tmp_path}/link/a {tmp_path}/real/b") == "{coco}/a {coco}/b"


def test_the_root_of_the_file_system_is_no_root():
    assert Roots({"artifacts": Path("/")}, home=Path("/")).hide("/usr/bin/atc / x") == "/usr/bin/atc / x"


def test_every_text_of_a_json_value_is_replaced():
    value = {"command": ["atc", "--model=/work/suite/m.onnx"], "seconds": 1.5, "/home/alice/x": None}
    assert ROOTS.hide_all(value) == {
        "command": ["atc", "--model={checkout}/m.onnx"],
        "seconds": 1.5,
        "{elsewhere}/x": None,
    }


def test_this_host_and_its_user_are_hidden(monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "node", lambda: "rack7.example.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    roots = roots_of_this_host(checkout=tmp_path, coco=None)
    assert roots.folders.keys() == {"checkout"}
    assert roots.hide(f"alice on rack7 in {tmp_path}") == "{user} on {host} in {checkout}"


def test_a_user_without_a_name_and_a_root_tell_nothing(monkeypatch):
    def nobody():
        raise OSError("no entry for this id")

    monkeypatch.setattr(platform, "node", lambda: "")
    monkeypatch.setattr(getpass, "getuser", nobody)
    assert roots_of_this_host().words == {}
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert roots_of_this_host().hide("the root of a data set") == "the root of a data set"
