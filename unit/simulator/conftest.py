import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.simulator.atc import main
from support.simulator.host import Simulation, simulated_host

SIDE = 16


# A stem with Swish, a squeeze-and-excite gate, and two heads, as the network has them.
def network(batch=2, mean=0.0):
    rng = np.random.default_rng(5)

    def weight(name, *shape, value=None):
        values = rng.normal(size=shape) * 0.3 if value is None else np.full(shape, value)
        return numpy_helper.from_array(values.astype(np.float32), name)

    weights = [
        weight("stem.w", 4, 3, 3, 3),
        weight("stem.b", 4, value=mean),
        weight("depth.w", 4, 1, 3, 3),
        weight("gate.w", 4, 4, 1, 1),
        weight("class.w", 6, 4, 1, 1),
        weight("box.w", 2, 4, 1, 1),
    ]
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem.w", "stem.b"], ["stem"], "stem", pads=[1, 1, 1, 1]),
        node("Sigmoid", ["stem"], ["swish.gate"], "swish.gate"),
        node("Mul", ["stem", "swish.gate"], ["swish"], "swish"),
        node("ReduceMean", ["swish"], ["squeezed"], "squeeze", axes=[2, 3], keepdims=1),
        node("Conv", ["squeezed", "gate.w"], ["excited"], "excite"),
        node("Sigmoid", ["excited"], ["gate"], "gate"),
        node("Mul", ["swish", "gate"], ["gated"], "gated"),
        node("MaxPool", ["gated"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["pooled", "depth.w"], ["deep"], "deep", group=4, pads=[1, 1, 1, 1]),
        node("Conv", ["deep", "class.w"], ["classes"], "class_head"),
        node("Conv", ["deep", "box.w"], ["boxes"], "box_head"),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [tensor("x", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [
            tensor("classes", TensorProto.FLOAT, [batch, 6, SIDE // 2, SIDE // 2]),
            tensor("boxes", TensorProto.FLOAT, [batch, 2, SIDE // 2, SIDE // 2]),
        ],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)


@pytest.fixture
def small():
    return network


class Toolchain:
    def __init__(self, folder, text):
        self.folder = folder
        self.environment = simulated_host(folder, Simulation.parse(text)).env
        self.description = json.loads((folder / "host.json").read_text())
        self.mixlist('{"black-list": {"to-add": ["ReduceMeanD"]}}')

    def mixlist(self, content):
        path = self.folder / "mixlist.json"
        path.write_text(content)
        return path

    # Options are changed by name; None leaves one out.
    def arguments(self, model, /, **changes):
        path = self.folder / "small.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        options = {
            "framework": "5",
            "model": path,
            "output": self.folder / "small",
            "input_format": "NCHW",
            "input_shape": "x:2,3,16,16",
            "log": "error",
            "soc_version": "Ascend310P3",
            "precision_mode": "allow_mix_precision",
            "modify_mixlist": self.folder / "mixlist.json",
        }
        options.update(changes)
        return [f"--{name}={value}" for name, value in options.items() if value is not None]

    def compile(self, model, /, **changes):
        assert main(self.arguments(model, **changes), self.description) == 0
        return self.folder / "small.om"


@pytest.fixture
def toolchain(tmp_path):
    return lambda text="sim:310P3": Toolchain(tmp_path / "host", text)
