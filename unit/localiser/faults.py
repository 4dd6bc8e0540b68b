"""Faults in graphs of EfficientDet, each in one block."""

import numpy as np
from onnx import numpy_helper

from support.graph_contract import constants


def node_of(model, name):
    return next(node for node in model.graph.node if node.name == name)


def _change(model, name, slot, change):
    tensor = constants(model)[node_of(model, name).input[slot]]
    values = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
    # Simplifiers let several operators share one constant.
    changed = model.graph.initializer.add()
    changed.CopyFrom(numpy_helper.from_array(values, f"{name}:{slot}"))
    node_of(model, name).input[slot] = changed.name


def weights(name, factor):
    return lambda model: _change(model, name, 1, lambda values: values * factor)


def bias(name, shift):
    return lambda model: _change(model, name, 2, lambda values: values + shift)


def zeroed_class(model):
    def zero(values):
        values[3] = 0
        return values

    _change(model, "/class_net/predict/conv_pw_2/Conv", 1, zero)


def fusion_weight(model):
    changed = model.graph.initializer.add()
    changed.CopyFrom(numpy_helper.from_array(np.array(0.4, np.float32), "fault"))
    node_of(model, "/fpn/cell/cell.1/fnode.2/combine/Mul").input[1] = changed.name


def linear_resize(model):
    resize = node_of(model, "/fpn/cell/cell.0/fnode.1/combine/resample.5/upsample/Resize")
    next(item for item in resize.attribute if item.name == "mode").s = b"linear"


def sigmoid_for_swish(model):
    mul = node_of(model, "/backbone/blocks.4/blocks.4.1/bn1/act/Mul")
    gate = next(name for name in mul.input if "Sigmoid" in name)
    mul.input[:] = [gate, gate]


def shared_prediction(model):
    for suffix in ("", "_1", "_2", "_3", "_4"):
        bias(f"/box_net/predict/conv_pw{suffix}/Conv", 0.05)(model)


def other_source(model):
    mul = node_of(model, "/fpn/cell/cell.2/fnode.2/combine/Mul")
    mul.input[0] = node_of(model, "/fpn/cell/cell.1/fnode.2/after_combine/conv/conv_pw/Conv").output[0]


#: What is named, and the fault.
FAULTS = {
    "stem": weights("/backbone/conv_stem/Conv", 1.05),
    "backbone block 3.1": bias("/backbone/blocks.3/blocks.3.1/conv_dw/Conv", 0.1),
    "backbone block 4.1": sigmoid_for_swish,
    "BiFPN input P6": weights("/fpn/resample.3/conv/conv/Conv", 0.9),
    "BiFPN cell 0 node 1 (P5)": linear_resize,
    "BiFPN cell 1 node 2 (P4)": fusion_weight,
    "BiFPN cell 2 node 2 (P4)": other_source,
    "class head repeat 1 (P5)": weights("/class_net/conv_rep.1/conv_pw_2/Conv", 0.9),
    "class head prediction (P5)": zeroed_class,
    "box head repeat 2 (P4)": bias("/box_net/conv_rep.2/conv_pw_1/Conv", 0.05),
    "box head prediction (P3, P4, P5, P6, P7)": shared_prediction,
}
