"""A device for file tests: raw heads that depend on the grey level of each image, and no time to start."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

COMPUTE_MS = 7.25


# The runtime of such a host starts this file in place of the simulator's own device.
def host(folder, text):
    from support.simulator.host import Simulation, simulated_host

    found = simulated_host(folder, Simulation.parse(text))
    module = folder / "project" / "support" / "simulator" / "device.py"
    module.parent.mkdir(parents=True)
    shutil.copy(__file__, module)
    facts = json.loads((folder / "host.json").read_text())
    (folder / "host.json").write_text(json.dumps({**facts, "project": str(folder / "project")}))
    return found


def om(path, side, batch, shapes):
    path.write_text(json.dumps({"side": side, "batch": batch, "shapes": [list(shape[1:]) for shape in shapes]}))
    return path


def heads(levels, shapes):
    rng = np.random.default_rng(3)
    bases = [rng.normal(-3, 1, shape[1:]).astype(np.float32) for shape in shapes]
    return [base + np.asarray(levels, np.float32)[:, None, None, None] for base in bases]


def described(name, *shape):
    size = 4 * int(np.prod(shape))
    return {"name": name, "datatype": 0, "format": 0, "shape": shape, "size": size, "realsize": size}


def load(request, models):
    try:
        model = json.loads(Path(request["model"]).read_text())
    except ValueError as error:
        return {"ok": False, "code": "ret:1", "log": [f"EE4001: {error}"]}
    models.append(model)
    outputs = [described(f"Conv_{place}:0", model["batch"], *shape) for place, shape in enumerate(model["shapes"])]
    inputs = [described("x.1", model["batch"], 3, model["side"], model["side"])]
    return {"ok": True, "model": len(models) - 1, "inputs": inputs, "outputs": outputs}


def answer(request, models):
    if request["op"] == "load":
        return load(request, models)
    if request["op"] == "run":
        model = models[request["model"]]
        images = np.fromfile(request["input"], np.float32).reshape(model["batch"], -1)
        with Path(request["output"]).open("r+b") as file:
            for output in heads(images[:, 0], [(1, *shape) for shape in model["shapes"]]):
                output.tofile(file)
        return {"ok": True, "compute_ms": COMPUTE_MS}
    return {"ok": True}


if __name__ == "__main__":
    loaded = []
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), loaded)), flush=True)  # noqa: T201
