import math
import runpy
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.errors import NoDataError, ToolError, UsageError, WrongDataError
from support.progress import SilentProgress
from support.shapes.__main__ import main
from support.shapes.scenes import CATEGORIES, KINDS, Scene, SceneObject
from support.shapes.training import (
    Sampler,
    TrainingPlan,
    learning_rate,
    load_tensors,
    state_path,
    train,
    training_scenes,
    widen_heads,
)

torch = pytest.importorskip("torch", reason="needs torch: pip install '.[export]'")
pytest.importorskip("effdet", reason="needs effdet: pip install '.[export]'")
# effdet decorates its post-processing with torch.jit.script when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

KIT = Path(__file__).resolve().parents[2] / "fixtures/data/shapes"
SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_notes = pytest.mark.skipif(
    not (SHARED / "kit").is_dir(), reason="needs the first generator beside the checkout: shared/kit"
)

TINY = TrainingPlan(steps=3, pool=8, size=128, batch=2)
HEAD = "class_net.predict.conv_pw"
ROWS = [number - 1 for number in CATEGORIES.values()]


class StopsAfter:
    def __init__(self, steps):
        self.steps = steps

    @contextmanager
    def step(self, title):
        def advance(done, total):
            if title == "training" and done == self.steps:
                raise KeyboardInterrupt

        yield advance


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # Threads that wait for each other on a busy machine take longer than one alone.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    target = tmp_path_factory.mktemp("trained") / "tiny.pth"
    loss = train(target, TINY, SilentProgress())
    return target, loss


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    target = tmp_path_factory.mktemp("stopped") / "tiny.pth"
    with pytest.raises(KeyboardInterrupt):
        train(target, TINY, StopsAfter(2), save_every=1)
    assert not target.exists()
    return state_path(target)


@pytest.fixture
def unfinished(stopped, tmp_path):
    target = tmp_path / "tiny.pth"
    shutil.copy(stopped, state_path(target))
    return target


@pytest.fixture(scope="module")
def committed():
    return load_tensors(KIT / "shapes_d0.pth")


def narrowed(state, rows):
    ten = {key: state[f"{HEAD}.{key}"].unflatten(0, (9, 90))[:, rows].flatten(0, 1) for key in ("weight", "bias")}
    return {**state, f"{HEAD}.weight": ten["weight"], f"{HEAD}.bias": ten["bias"]}


def equal(first, second):
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def forms(state):
    return [(key, tensor.shape, tensor.dtype, tensor.stride()) for key, tensor in state.items()]


def test_a_training_reaches_a_finite_loss_and_leaves_one_file(trained):
    target, loss = trained
    assert 0 < loss < math.inf
    assert list(target.parent.iterdir()) == [target]


def test_a_trained_checkpoint_loads_strictly_into_the_network(trained):
    from effdet import EfficientDet
    from effdet.config import get_efficientdet_config

    network = EfficientDet(get_efficientdet_config("tf_efficientdet_d0"), pretrained_backbone=False)
    state = load_tensors(trained[0])
    network.load_state_dict(state, strict=True)
    assert len(state) == 784


def test_a_trained_checkpoint_has_the_form_of_the_committed_one(trained, committed):
    forms = [
        {key: (t.shape, t.dtype, t.stride()) for key, t in s.items()} for s in (load_tensors(trained[0]), committed)
    ]
    assert forms[0] == forms[1]


def test_a_resumed_training_ends_as_if_it_had_never_stopped(trained, unfinished):
    before = torch.get_rng_state()
    loss = train(unfinished, TINY, SilentProgress(), resume=True)
    assert loss == trained[1]
    assert equal(load_tensors(unfinished), load_tensors(trained[0]))
    assert list(unfinished.parent.iterdir()) == [unfinished]
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are left alone


def test_an_unfinished_training_is_not_overwritten(unfinished):
    with pytest.raises(UsageError, match=r"tiny.pth.unfinished is an unfinished training\n.*--resume"):
        train(unfinished, TINY, SilentProgress())


def test_an_unfinished_training_of_another_plan_is_not_resumed(unfinished):
    with pytest.raises(UsageError, match=r"belongs to \{'steps': 3, .*\n  required: \{'steps': 4, "):
        train(unfinished, replace(TINY, steps=4), SilentProgress(), resume=True)


def test_a_checkpoint_is_not_overwritten(trained):
    with pytest.raises(UsageError, match=r"tiny.pth exists already"):
        train(trained[0], TINY, SilentProgress())


def test_a_target_in_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        train(tmp_path / "nowhere/tiny.pth", TINY, SilentProgress())


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(NoDataError, match=r"tiny.pth.unfinished does not exist"):
        train(tmp_path / "tiny.pth", TINY, SilentProgress(), resume=True)


def test_a_damaged_state_is_not_resumed(unfinished):
    whole = state_path(unfinished).read_bytes()
    state_path(unfinished).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WrongDataError, match=r"tiny.pth.unfinished cannot be read"):
        train(unfinished, TINY, SilentProgress(), resume=True)


def test_weights_are_not_the_state_of_a_training(trained, tmp_path):
    shutil.copy(trained[0], state_path(tmp_path / "tiny.pth"))
    with pytest.raises(WrongDataError, match="is not the state of a training"):
        train(tmp_path / "tiny.pth", TINY, SilentProgress(), resume=True)


def test_a_file_that_would_execute_code_is_not_read(tmp_path):
    torch.save({"code": Path("anything")}, tmp_path / "bad.pth")
    with pytest.raises(WrongDataError, match=r"bad.pth cannot be read"):
        load_tensors(tmp_path / "bad.pth")


def test_a_file_of_something_else_is_not_read(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WrongDataError, match="holds a list\n  required: a dict of tensors"):
        load_tensors(tmp_path / "list.pth")


def test_a_training_that_diverges_ends(tmp_path):
    with pytest.raises(ToolError, match=r"step [12]: the loss is (nan|inf)"):
        train(tmp_path / "tiny.pth", replace(TINY, pool=1, peak_rate=1e30), SilentProgress())


def test_the_learning_rate_warms_up_and_falls():
    plan = TrainingPlan()
    rates = [learning_rate(step, plan) for step in range(plan.steps)]
    peak = int(np.argmax(rates))
    assert 140 <= peak <= 150
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0.02 < rates[-1] / plan.peak_rate < 0.021


def test_widening_puts_the_trained_rows_at_their_category_ids(committed):
    ten = narrowed(committed, ROWS)
    ten[f"{HEAD}.bias"] = torch.arange(90.0)
    widened = widen_heads(ten)[f"{HEAD}.bias"].reshape(9, 90)
    assert torch.equal(widened[:, ROWS], torch.arange(90.0).reshape(9, 10))


def test_widening_the_trained_rows_of_the_committed_checkpoint_gives_it_again(committed):
    assert equal(widen_heads(narrowed(committed, ROWS)), committed)


def test_widening_other_rows_of_the_committed_checkpoint_does_not(committed):
    assert not equal(widen_heads(narrowed(committed, list(range(10)))), committed)


def test_samples_are_the_same_for_the_same_pool():
    scenes = list(training_scenes(2, 128))
    first, second = (Sampler(scenes, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)) for _ in range(2))
    for _ in range(5):
        one, other = first.draw(), second.draw()
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.labels, other.labels)


def test_boxes_follow_what_they_enclose():
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[10:30, 50:90] = 255
    scene = Scene(pixels, (SceneObject("bolt", (50, 10, 90, 30), 800.0),))
    sampler = Sampler([scene], (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    seen = set()
    for _ in range(60):
        sample = sampler.draw()
        rows, columns = np.nonzero(sample.image.min(0) > 128)
        enclosing = [[rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]] if rows.size else []
        assert sample.boxes.tolist() == enclosing
        assert sample.labels.tolist() == [KINDS.index("bolt") + 1] * len(enclosing)
        seen.add(tuple(map(tuple, enclosing)))
    assert len(seen) > 8  # eight ways to turn the scene, and some are cut


@needs_notes
def test_training_scenes_equal_those_of_the_first_generator():
    notes = runpy.run_path(str(SHARED / "kit/scenes.py"))
    for index, ours in enumerate(training_scenes(4, 256)):
        theirs = notes["scene"](np.random.default_rng([11, index]), 256, 256, lo=10, hi=210, max_obj=6)
        assert np.array_equal(ours.pixels, theirs[0])
        assert [list(item.box) for item in ours.objects] == theirs[1].tolist()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "argument --steps: 0 is not a positive integer"),
        ("--pool", "many", "argument --pool: many is not a positive integer"),
        ("--peak-rate", "nan", "argument --peak-rate: nan is not a positive number"),
    ],
)
def test_the_command_reports_an_option_that_makes_no_sense(tmp_path, capsys, option, value, message):
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(tmp_path / "tiny.pth"), option, value])
    assert message in capsys.readouterr().err


def test_the_command_reports_that_there_is_nothing_to_resume(tmp_path, capsys):
    assert main(["train", str(tmp_path / "tiny.pth"), "--resume"]) == 1
    assert "tiny.pth.unfinished does not exist" in capsys.readouterr().err
