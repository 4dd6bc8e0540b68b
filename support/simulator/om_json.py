"""What the simulated compiler tells of a compiled model, in the layout of ``atc --mode=1``."""

from __future__ import annotations

from typing import Any

from support.ascend.operators import ascend_type
from support.simulator.om import Om, OmTensor

__all__ = ["as_json"]

DTYPES = {"float32": "DT_FLOAT", "float16": "DT_FLOAT16", "uint8": "DT_UINT8", "int8": "DT_INT8"}


def as_json(om: Om) -> dict[str, Any]:
    """
    Describe a compiled model: its attributes, and one graph of operators between ``Data`` and ``NetOutput``.

    Every operator tells the type it computes in; only inputs and outputs tell shapes.
    """
    texts = {
        "soc_version": om.soc_version,
        "atc_version": om.version,
        "opp_version": om.version,
        "atc_cmdline": om.command,
    }
    outputs = {"key": "attr_model_out_nodes_name", "value": {"list": {"s": [tensor.name for tensor in om.outputs]}}}
    return {
        "name": "simulated",
        "attr": [*({"key": key, "value": {"s": text}} for key, text in texts.items()), outputs],
        "graph": [{"name": "graph", "op": [*_data(om), *_operators(om), _net_output(om)]}],
    }


def _data(om: Om) -> list[dict[str, Any]]:
    return [
        {"name": tensor.name, "type": "Data", "input_desc": [_desc(tensor)], "output_desc": [_desc(tensor)]}
        for tensor in om.inputs
    ]


def _operators(om: Om) -> list[dict[str, Any]]:
    import onnx

    lowered = set(om.lowered)
    found: list[dict[str, Any]] = [{"name": "aipp", "type": "Aipp"}] if om.aipp else []
    for node in onnx.load_from_string(om.onnx).graph.node:
        if node.op_type == "Constant":
            continue
        kind = "DT_FLOAT16" if node.name in lowered else "DT_FLOAT"
        desc = [{"dtype": kind, "layout": "NCHW"}]
        found.append({"name": node.name, "type": ascend_type(node), "input_desc": desc, "output_desc": desc})
    return found


def _net_output(om: Om) -> dict[str, Any]:
    return {"name": "Node_Output", "type": "NetOutput", "input_desc": [_desc(tensor) for tensor in om.outputs]}


def _desc(tensor: OmTensor) -> dict[str, Any]:
    return {"dtype": DTYPES[tensor.dtype], "layout": "NCHW", "shape": {"dim": list(tensor.shape)}}
