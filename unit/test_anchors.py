import numpy as np
import pytest

from support.anchors import anchor_boxes, level_sizes
from support.spec import load_spec

MODEL = load_spec("efficientdet_d0").model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:FutureWarning"  # effdet 0.4.1 scripts its functions when it is imported
)


def sized(**changes):
    return MODEL.model_copy(update=changes)


@pytest.mark.parametrize(
    "model",
    [MODEL, sized(image_size=128), sized(image_size=640), sized(image_size=320), sized(max_level=8)],
    ids=["d0", "small", "d1", "odd-level", "six-levels"],
)
def test_anchors_equal_those_of_effdet_to_the_last_bit(model):
    effdet = pytest.importorskip("effdet.anchors")
    theirs = effdet.Anchors(
        model.min_level,
        model.max_level,
        num_scales=3,
        aspect_ratios=[(1.0, 1.0), (1.4, 0.7), (0.7, 1.4)],
        anchor_scale=4.0,
        image_size=(model.image_size, model.image_size),
    )
    ours = anchor_boxes(model)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs.boxes.numpy(), strict=True)


def test_levels_halve_and_round_up():
    assert level_sizes(MODEL) == (64, 32, 16, 8, 4)
    assert level_sizes(sized(image_size=320)) == (40, 20, 10, 5, 3)


def test_the_anchors_follow_the_spec():
    plain, scaled = anchor_boxes(MODEL), anchor_boxes(MODEL.model_copy(update={"anchor_scale": 5.0}))

    np.testing.assert_allclose(scaled[:, 2] - scaled[:, 0], (plain[:, 2] - plain[:, 0]) * 1.25, rtol=1e-4)
    assert len(anchor_boxes(MODEL.model_copy(update={"anchor_octaves": 2}))) * 3 == len(plain) * 2
