import numpy as np
import pytest
from onnx import numpy_helper

from support.errors import ContractViolationError, ToolError
from support.graph_contract import constants
from support.localiser.blocks import search, search_in_half_precision
from support.localiser.conclusion import named
from support.localiser.record import ROUNDING
from support.spec import load_spec
from support.stages.modified_onnx import zero_pads
from unit.localiser.faults import FAULTS, node_of, weights

ATC = load_spec("shapes_d0").atc

# The others, and these at full size, take longer: see test_search.py.
QUICK = (
    "stem",
    "backbone block 4.1",
    "BiFPN cell 1 node 2 (P4)",
    "class head repeat 1 (P5)",
    "box head prediction (P3, P4, P5, P6, P7)",
)


def test_no_block_of_a_clean_graph_stands_out(clean, network):
    found = search(clean, network)
    assert found.images == 2
    assert len(found.errors) == len(network.blocks) == 83
    assert found.standing_out == ()
    assert 0 < found.worst.local < ROUNDING / 10


@pytest.mark.parametrize("block", QUICK)
def test_the_block_with_the_fault_is_named_and_no_other(graph, network, block):
    FAULTS[block](graph)
    found = search(graph, network)
    assert named(found.standing_out) == block
    assert found.worst.local > 100 * ROUNDING


def test_what_a_block_inherits_is_told_from_what_it_does_itself(graph, network):
    FAULTS["stem"](graph)
    errors = search(graph, network).errors
    assert errors[0].local == pytest.approx(errors[0].chained)
    assert all(error.local < ROUNDING < error.chained for error in errors[1:])


def test_a_wrong_connection_is_told(graph, network):
    FAULTS["BiFPN cell 2 node 2 (P4)"](graph)
    (wrong,) = search(graph, network).standing_out
    assert wrong.wiring == (
        "reads BiFPN cell 1 node 2 (P4), BiFPN cell 2 node 1 (P5) instead of "
        "BiFPN cell 1 node 4 (P4), BiFPN cell 2 node 1 (P5)"
    )


# As the graph of a stranger: numbers for names.
def test_names_are_not_needed(graph, network):
    FAULTS["BiFPN cell 1 node 2 (P4)"](graph)
    numbers = {}
    for node in graph.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [name and numbers.setdefault(name, str(len(numbers))) for name in names]
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        value.name = numbers.get(value.name, value.name)
    assert named(search(graph, network).standing_out) == "BiFPN cell 1 node 2 (P4)"
    assert search_in_half_precision(graph, network, ATC).worst.block == "BiFPN cell 1 node 2 (P4)"


@pytest.mark.slow
def test_the_edit_of_the_pads_is_left_out(raw, network):
    model = type(raw)()
    model.CopyFrom(raw)
    assert len(zero_pads(model)) == 14
    found = search(model, network)
    assert (found.pads_undone, found.standing_out) == (14, ())
    pad = node_of(model, "/fpn/cell/cell.1/fnode.5/combine/resample.9/downsample/Pad")
    constants(model)[pad.input[2]].float_data[:] = [3.0]
    found = search(model, network)
    assert (found.pads_undone, named(found.standing_out)) == (13, "BiFPN cell 1 node 5 (P5)")


# Thrice the operators: it computes shapes from data, pads before it convolves, and keeps fusion weights as exported.
@pytest.mark.slow
def test_the_graph_as_exported_is_searched_like_the_simplified_one(raw, network):
    assert search(raw, network).standing_out == ()
    model = type(raw)()
    model.CopyFrom(raw)
    FAULTS["box head repeat 2 (P4)"](model)
    assert named(search(model, network).standing_out) == "box head repeat 2 (P4)"


def test_a_graph_of_many_images_is_searched_with_one_at_a_time_and_left_as_it_is(clean, network):
    before = clean.SerializeToString(deterministic=True)
    assert search(clean, network).images == 2
    assert clean.SerializeToString(deterministic=True) == before


def test_a_block_that_gives_no_finite_number_is_infinitely_wrong(graph, network):
    FAULTS["backbone block 3.1"](graph)
    for tensor in graph.graph.initializer:
        if tensor.name.startswith("/backbone/blocks.3/blocks.3.1/conv_dw/Conv:"):
            values = numpy_helper.to_array(tensor).copy()
            values[0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    found = search(graph, network)
    assert found.worst.local == found.errors[-1].chained == np.inf
    assert [error.block for error in found.standing_out] == ["backbone block 3.1"]


def test_a_convolution_of_another_shape_names_its_block(graph, network):
    conv = node_of(graph, "/backbone/blocks.2/blocks.2.0/conv_dw/Conv")
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == conv.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[..., 1:4, 1:4].copy(), tensor.name))
    with pytest.raises(ContractViolationError, match=r"departs from the network in backbone block 2\.0") as caught:
        search(graph, network)
    assert "weights [144, 1, 3, 3]" in caught.value.found
    assert caught.value.required == "convolution with weights [144, 1, 5, 5]"


def test_a_graph_that_ends_early_or_late_is_told(graph, network):
    conv = node_of(graph, "/box_net/predict/conv_pw_4/Conv")
    graph.graph.node.append(conv)
    with pytest.raises(ContractViolationError, match="goes on after the network ends: convolution"):
        search(graph, network)
    del graph.graph.node[-2:]
    with pytest.raises(ContractViolationError, match="box head P7 prediction: nothing"):
        search(graph, network)


def test_blocks_of_reordered_operators_are_not_guessed(graph, network):
    nodes = list(graph.graph.node)
    heads = [node for node in nodes if node.name.startswith("/class_net/")]
    levels, level = [[]], 0
    for node in heads:
        levels[level].append(node)
        if "/predict/conv_pw" in node.name and node.op_type == "Conv":
            levels.append([])
            level += 1
    first = nodes.index(heads[0])
    nodes[first : first + len(heads)] = [node for level in reversed(levels) for node in level]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    with pytest.raises(ToolError, match="the blocks of the graph cannot be told: 4 of 83 read others"):
        search(graph, network)


def test_a_graph_the_runtime_refuses_is_a_failed_tool(graph, network):
    node_of(graph, "/backbone/conv_stem/Conv").attribute.add(name="unheard_of").i = 1
    with pytest.raises(ToolError, match="ONNX Runtime loading the blocks failed"):
        search(graph, network)


def test_half_precision_blames_nobody_where_every_number_fits(clean, network):
    found = search_in_half_precision(clean, network, ATC)
    assert found.standing_out == ()
    assert ROUNDING < found.worst.local < 0.01
    assert "allow_mix_precision" in found.method


def test_half_precision_blames_the_block_that_does_not_fit(graph, network):
    # A million times too large in between and right in the end: float32 does not notice.
    node = "/fpn/cell/cell.1/fnode.3/after_combine/conv"
    weights(f"{node}/conv_dw/Conv", 1e6)(graph)
    weights(f"{node}/conv_pw/Conv", 1e-6)(graph)
    assert search(graph, network).standing_out == ()
    found = search_in_half_precision(graph, network, ATC)
    assert named(found.standing_out) == "BiFPN cell 1 node 3 (P3)"
    assert found.worst.local == np.inf
