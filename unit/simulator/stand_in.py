"""A device that only doubles and adds up, and starts in no time; models are JSON files."""

import importlib.util
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np

SIDE = 4
OUTPUTS = {"Conv_1:0:doubled": (3, SIDE, SIDE), "Conv_2:0:sums": (5,)}


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


# The runtime module of a host, which reads its environment when it is imported.
def runtime_of(host):
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
        for name, value in host.env.items():
            patch.setenv(name, value)
        return module_of(Path(host.env["ASCEND_SIMULATED_HOST"]) / "site" / "aclruntime.py")


def module_of(path):
    spec = importlib.util.spec_from_file_location(f"simulated_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model(path, batch=2, seconds=0.0):
    path.write_text(json.dumps({"batch": batch, "seconds": seconds}))
    return path


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def expected(batch):
    return [2 * batch, np.repeat(batch.sum((1, 2, 3))[:, None], 5, 1)]


def described(name, *shape):
    size = 4 * int(np.prod(shape))
    return {"name": name, "datatype": 0, "format": 0, "shape": shape, "size": size, "realsize": size}


def answer(request, models):
    if request["op"] == "load":
        try:
            models.append(json.loads(Path(request["model"]).read_text()))
        except (OSError, ValueError) as error:
            return {"ok": False, "code": "ret:1", "log": [f"EE4001: {error}"]}
        batch = models[-1]["batch"]
        outputs = [described(name, batch, *shape) for name, shape in OUTPUTS.items()]
        inputs = [described("x.1", batch, 3, SIDE, SIDE)]
        return {"ok": True, "model": len(models) - 1, "inputs": inputs, "outputs": outputs}
    if request["op"] == "run":
        time.sleep(models[request["model"]]["seconds"])
        batch = np.fromfile(request["input"], np.float32).reshape(-1, 3, SIDE, SIDE)
        with Path(request["output"]).open("r+b") as file:
            for output in expected(batch):
                output.astype(np.float32).tofile(file)
        return {"ok": True, "compute_ms": 7.25}
    return {"ok": True}


if __name__ == "__main__":
    loaded = []
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), loaded)), flush=True)  # noqa: T201
