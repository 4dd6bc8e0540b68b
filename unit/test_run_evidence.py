import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.dataset import open_dataset
from support.evidence.bundle import read_bundle
from support.evidence.replay import replay
from support.spec import load_spec
from unit.evidence.test_collection import contents
from unit.test_readme import IMAGES, KIT, SMALL

pytestmark = [pytest.mark.slow, pytest.mark.needs_torch]

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Run the whole gate on five images; the models are those of the kit's own gate."""
    folder = tmp_path_factory.mktemp("evidence")
    kit = open_dataset(KIT, load_spec("shapes_d0").dataset).limited(IMAGES)
    ids = {image.id for image in kit.images}
    truth = json.loads((KIT / "annotations/instances_val2017.json").read_text())
    truth["images"] = [row for row in truth["images"] if row["id"] in ids]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in ids]
    (folder / "coco/annotations").mkdir(parents=True)
    (folder / "coco/annotations/instances_val2017.json").write_text(json.dumps(truth))
    (folder / "coco/val2017").symlink_to(KIT / "val2017")
    facts = {"images": IMAGES, "annotations": kit.annotation_digest, "sizes": kit.size_digest}
    (folder / "small.toml").write_text(SMALL.format(root=json.dumps(str(folder / "coco")), **facts))
    given = [
        f"--spec={folder / 'small.toml'}",
        f"--artifacts={CHECKOUT / 'artifacts'}",
        f"--report-dir={folder / 'new'}",
    ]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "acceptance", "--chip=cpu", *given]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900, check=False)
    return done, folder


@pytest.fixture(scope="module")
def bundle(ended):
    done, folder = ended
    assert (folder / "new").is_dir(), done.stdout[-4000:] + done.stderr
    return read_bundle(folder / "new")


def test_the_evidence_tells_the_verdict_of_the_last_line(ended, bundle):
    done, _ = ended
    assert done.stdout.splitlines()[-1] == bundle.document.release.line
    assert done.returncode == bundle.document.release.exit_status


def test_it_holds_every_part_of_the_run(bundle):
    document = bundle.document
    missing = [
        name for name in ("checkpoint", "dataset", "truth", "reference", "ladder") if not getattr(document, name)
    ]
    assert missing == []
    assert sorted(document.passes) == sorted(bundle.passes) == [1, 4]
    assert all(record.timing for record in document.passes.values())
    kinds = {(model.kind, model.batch) for model in document.models}
    assert len(kinds) == 6
    assert {batch for _, batch in kinds} == {1, 4}
    assert len([name for name in document.files if name.startswith("pictures/")]) > 0


def test_it_is_replayed_to_the_same_verdict_and_numbers(bundle):
    again = replay(bundle)
    assert again.line == bundle.document.release.line.replace(": ", ": replay of ", 1)
    assert [clause.readings for clause in again.clauses] == [
        clause.readings for clause in bundle.document.release.clauses
    ]


def test_it_tells_no_place_of_this_host(ended, bundle):
    _, folder = ended
    words = [str(folder).encode(), str(CHECKOUT).encode()]
    assert [(name, word) for name, data in contents(bundle.folder) for word in words if word in data] == []
