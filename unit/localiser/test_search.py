import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.ascend.host import real_host
from support.capabilities import Capabilities
from support.checkpoint import build_model
from support.errors import ContractViolationError, NotFiniteError
from support.localiser import blocks, stages
from support.localiser.conclusion import named
from support.localiser.network import observed
from support.localiser.record import Localisation
from support.localiser.search import localise
from support.localiser.text import lines
from support.onnx_files import save_onnx
from support.options import RunOptions
from support.progress import SilentProgress
from support.results import Results
from support.run import Run
from support.spec import load_spec
from support.verdict import ClauseVerdict, ReleaseVerdict
from unit.localiser.faults import FAULTS

KIT = Path(__file__).resolve().parents[2] / "fixtures/data/shapes"
IMAGES, BATCH = 5, 4
MACHINE = Capabilities(
    host="bench", cpu="a processor", cores=2, memory_gib=8, system="Linux", python="3.11", packages={"numpy": "2.4"}
)


def verdict(*clauses):
    return ReleaseVerdict(
        word="rejected", scope="gate", subject="a model", is_release=False, reasons=(), clauses=clauses
    )


def red(clause="stage_tensors", batch=BATCH, **facts):
    return ClauseVerdict(clause=clause, batch=batch, word="rejected", **facts)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def start(store, small, tmp_path):
    def start(model, **options):
        save_onnx(model, tmp_path / f"{BATCH}.onnx")
        asked = {
            "spec": "shapes_d0",
            "checkpoint": KIT / "shapes_d0.pth",
            "coco_root": KIT,
            "onnx": f"{tmp_path}/{{batch}}.onnx",
            "limit": IMAGES,
            "artifacts": store,
            "batch_sizes": (BATCH,),
        }
        run = Run(RunOptions(**(asked | options)), small, MACHINE, tmp_path / "session", SilentProgress(), real_host())
        return run, Results(run)

    return start


def test_a_red_candidate_is_searched_down_to_its_block(start, graph):
    FAULTS["class head repeat 1 (P5)"](graph)
    found = localise(*start(graph), verdict(red("accuracy_guide_drop", 16), red("stage_ap", None), red()))
    assert found.suspect.startswith("class head repeat 1 (P5): wrong by itself (relative error ")
    assert found.red == ("accuracy_guide_drop[bs16]", "stage_ap", "stage_tensors[bs4]")
    assert found.batch == BATCH
    assert [(head.kind, head.level) for head in found.heads if head.is_red] == [("class", 5)]
    assert found.blocks.images == 2
    assert found.half_blocks is None
    assert found.groups
    assert found.images
    assert found.notes == ()
    assert Localisation.model_validate_json(found.model_dump_json()) == found
    assert lines(found)[0] == f"look first at: {found.suspect}"


def test_a_right_network_points_behind_itself(start, clean, monkeypatch):
    monkeypatch.setattr(Run, "precision", "mixed")
    found = localise(*start(clean), verdict(red("accuracy_measured_drop")))
    assert found.suspect.startswith("behind the network, whose outputs on the golden images are right: ")
    assert found.blocks.standing_out == found.half_blocks.standing_out == ()
    assert found.half_blocks.worst.local > 100 * found.blocks.worst.local


def test_a_clause_that_says_nothing_of_accuracy_starts_no_search():
    undecided = ClauseVerdict(clause="stage_tensors", batch=BATCH, word="undetermined", reason="partial")
    others = verdict(red("throughput_vs_310"), red(informative=True), undecided)
    assert localise(None, None, others) is None


def test_without_a_checkpoint_the_heads_tell_what_they_can(start, graph, clean, tmp_path):
    recorded = start(clean)[0]
    bundle = tmp_path / "reference"
    shutil.copytree(recorded.reference.folder, bundle)
    # As if it had been recorded over all images.
    whole = recorded.whole_dataset
    digests = {"annotation_digest": whole.annotation_digest, "size_digest": whole.size_digest}
    (bundle / "reference.json").write_text(recorded.reference.facts.model_copy(update=digests).model_dump_json())
    FAULTS["box head prediction (P3, P4, P5, P6, P7)"](graph)
    found = localise(*start(graph, checkpoint=tmp_path / "nowhere.pth", reference=bundle), verdict(red()))
    assert found.suspect.startswith("the box head at every level")
    assert found.blocks is None
    assert found.notes[0].startswith("blocks: ")
    assert "nowhere.pth" in found.notes[0]


def test_what_has_no_time_is_not_done_and_said(start, clean):
    found = localise(*start(clean), verdict(red()), seconds=0)
    assert found.suspect.startswith("not found")
    assert found.notes == tuple(
        f"{part}: the 0 s of the search were over"
        for part in ("classes and sizes", "worst images", "stages", "heads", "blocks")
    )


@pytest.mark.parametrize("mode", ["om", "results"])
def test_what_runs_inside_an_om_cannot_be_read(small, mode):
    run = SimpleNamespace(spec=small, options=SimpleNamespace(mode=mode, batches=lambda spec: (BATCH,)))
    found = localise(run, SimpleNamespace(), verdict(red()))
    assert "blocks: no tensor between input and heads can be read from an .om or from result files" in found.notes


def test_a_graph_that_departs_from_the_network_is_the_suspect(start, clean, monkeypatch):
    def refuse(model, network):
        raise ContractViolationError("the graph departs from the network in stem: nothing at place 0")

    monkeypatch.setattr(blocks, "search", refuse)
    found = localise(*start(clean), verdict(red()))
    assert found.suspect == "the graph departs from the network in stem: nothing at place 0"


def test_stages_before_one_that_fails_are_kept(start, clean, monkeypatch):
    run, results = start(clean)

    def rungs(run, batch):
        yield "raw onnx", results.golden, (1, 1)
        raise NotFiniteError("NaN", slot=0)

    monkeypatch.setattr(stages, "_rungs", rungs)
    monkeypatch.setattr(blocks, "search", lambda model, network: None)
    found = localise(run, results, verdict(red()))
    assert [(stage.stage, stage.logit_error) for stage in found.stages] == [("raw onnx", 0)]
    assert found.notes == ("stages: NaN",)


def test_a_search_that_breaks_leaves_a_note(start, clean, monkeypatch):
    def fail(model, network):
        raise KeyError("nobody foresaw")

    monkeypatch.setattr(blocks, "search", fail)
    found = localise(*start(clean), verdict(red()))
    assert found.notes == ("blocks: KeyError: 'nobody foresaw'",)
    assert found.heads


@pytest.fixture(scope="module")
def deployed(store):
    spec = load_spec("shapes_d0")
    options = RunOptions(spec="shapes_d0", checkpoint=KIT / "shapes_d0.pth", coco_root=KIT, artifacts=store, limit=2)
    run = Run(options, spec, MACHINE, store / "session", SilentProgress(), real_host())
    return run.onnx(1), observed(build_model(run.checkpoint, spec.model), run.feed.tensors(range(2)))


@pytest.mark.slow
def test_the_deployed_graph_is_clean(deployed):
    assert blocks.search(*deployed).standing_out == ()


@pytest.mark.slow
@pytest.mark.parametrize("block", FAULTS)
def test_the_deployed_graph_with_a_fault_shows_its_block(deployed, block):
    model = type(deployed[0])()
    model.CopyFrom(deployed[0])
    FAULTS[block](model)
    assert named(blocks.search(model, deployed[1]).standing_out) == block
