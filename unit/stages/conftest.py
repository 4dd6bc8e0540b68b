from pathlib import Path

import pytest
import torch

from support.artifacts import ArtifactStore
from support.checkpoint import load_checkpoint
from support.progress import SilentProgress
from support.spec import load_spec
from support.stages.onnx_from_pth import onnx_from_pth

# Another batch than the one that is traced.
BATCH = 2


@pytest.fixture(scope="session")
def spec():
    return load_spec("shapes_d0")


@pytest.fixture(scope="session")
def checkpoint(spec):
    return load_checkpoint(Path(__file__).resolve().parents[2] / spec.checkpoint.path, spec.model, spec.checkpoint)


@pytest.fixture(scope="session")
def stage_store(tmp_path_factory):
    return ArtifactStore(tmp_path_factory.mktemp("stages"), lock_seconds=300)


# Threads that wait for each other make small operators slow where other processes are busy.
@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# One export serves every test of the stages.
@pytest.fixture(scope="session")
def raw(stage_store, checkpoint, spec):
    return onnx_from_pth(stage_store, checkpoint, spec.model, spec.graph, BATCH, SilentProgress())
