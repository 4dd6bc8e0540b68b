import numpy as np
import pytest
import torch

from support.errors import ToolError
from support.localiser.network import IMAGE, observed


def test_the_blocks_are_those_of_the_architecture(network):
    titles = [block.title for block in network.blocks]
    assert titles[:2] == ["stem", "backbone block 0.0"]
    assert titles[16:20] == ["backbone block 6.0", "BiFPN input P6", "BiFPN input P7", "BiFPN cell 0 node 0 (P6)"]
    assert titles[42:47] == [
        "BiFPN cell 2 node 7 (P7)",
        *(f"class head P3 repeat {place}" for place in range(3)),
        "class head P3 prediction",
    ]
    assert titles[-1] == "box head P7 prediction"
    assert len(set(titles)) == len(titles) == 83


def test_the_blocks_read_what_the_architecture_connects(network):
    reads = {
        block.title: {"image" if at == IMAGE else network.blocks[at].title for at in block.reads}
        for block in network.blocks
    }
    assert reads["stem"] == {"image"}
    assert reads["backbone block 3.1"] == {"backbone block 3.0"}
    assert reads["BiFPN cell 0 node 3 (P3)"] == {"backbone block 2.1", "BiFPN cell 0 node 2 (P4)"}
    assert reads["BiFPN cell 1 node 6 (P6)"] == {
        "BiFPN cell 0 node 6 (P6)",
        "BiFPN cell 1 node 0 (P6)",
        "BiFPN cell 1 node 5 (P5)",
    }
    assert reads["class head P4 repeat 0"] == reads["box head P4 repeat 0"] == {"BiFPN cell 2 node 4 (P4)"}


def test_the_outputs_are_those_of_the_network(network, eager, images):
    with torch.inference_mode():
        classes, boxes = eager(torch.from_numpy(images))
    outputs = {block.title: block.output for block in network.blocks}
    for kind, heads in (("class", classes), ("box", boxes)):
        for level, head in enumerate(heads, start=3):
            np.testing.assert_array_equal(outputs[f"{kind} head P{level} prediction"], head.numpy())


def test_activations_in_place_do_not_reach_what_was_kept(network, eager, images):
    kept = [block.output.copy() for block in network.blocks]
    observed(eager, images[::-1].copy())
    for before, block in zip(kept, network.blocks, strict=True):
        np.testing.assert_array_equal(block.output, before)
    assert (network.blocks[0].output < 0).any()  # the swish of the stem is in it, and nothing after that


def test_the_network_is_left_without_hooks(network, eager):
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in eager.modules())


def test_a_backbone_of_other_parts_is_refused(images):
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Conv2d(3, 8, 1)

    with pytest.raises(ToolError, match="the backbone Conv2d has no blocks"):
        observed(Other(), images)
