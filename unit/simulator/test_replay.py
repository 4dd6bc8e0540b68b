import numpy as np
import pytest

from support.simulator.precision import lowered
from support.simulator.replay import Replay, graph_digest

SHAPES = [(2, 4, 4), (1, 2)]


class Computer:
    def __init__(self):
        self.batches = []

    def __call__(self, tensor):
        self.batches.append(len(tensor))
        means = tensor.mean(axis=(1, 2, 3))
        return [np.broadcast_to(means.reshape(-1, *[1] * len(shape)), (len(tensor), *shape)) for shape in SHAPES]


@pytest.fixture
def computer():
    return Computer()


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)


def joined(outputs):
    return [np.stack(rows) for rows in outputs]


def equal(left, right):
    return all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


def test_images_met_before_are_replayed_at_any_batch_size_and_in_any_order(tmp_path, computer, images):
    replay = Replay(tmp_path, SHAPES)
    expected = computer(images)
    assert equal(joined(replay.outputs(images, computer)), expected)
    assert equal(joined(replay.outputs(images[[2, 0]], computer)), [rows[[2, 0]] for rows in expected])
    assert computer.batches == [4, 4]


def test_another_process_finds_them(tmp_path, computer, images):
    Replay(tmp_path, SHAPES).outputs(images, computer)
    again = joined(Replay(tmp_path, SHAPES).outputs(images, computer))
    assert computer.batches == [4]
    assert equal(again, computer(images))


@pytest.mark.parametrize("place", [(0, 0, 0), (2, 7, 7), (1, 3, 4)])
def test_an_image_with_one_other_pixel_is_another(tmp_path, computer, images, place):
    replay = Replay(tmp_path, SHAPES)
    replay.outputs(images, computer)
    images[(1, *place)] += 1
    assert equal(joined(replay.outputs(images, computer)), computer(images))


def test_a_mirrored_image_is_another(tmp_path, computer, images):
    replay = Replay(tmp_path, SHAPES)
    replay.outputs(images, computer)
    replay.outputs(np.ascontiguousarray(images[..., ::-1]), computer)
    assert computer.batches == [4, 4]


def test_a_graph_is_the_same_at_another_batch_size(small):
    assert graph_digest(small(2)) == graph_digest(small(8))


def test_a_graph_with_other_weights_is_another(small):
    assert graph_digest(small()) != graph_digest(small(mean=1.0))


def test_a_graph_that_rounds_or_saturates_is_another(small):
    graphs = [small(), *(lowered(small(), ["stem"], saturate=saturate) for saturate in (False, True))]
    assert len({graph_digest(graph) for graph in graphs}) == 3
