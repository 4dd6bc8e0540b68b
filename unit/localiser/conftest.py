from pathlib import Path

import numpy as np
import pytest
import torch

from support.artifacts import ArtifactStore
from support.checkpoint import build_model, load_checkpoint
from support.inputs import InputFormat, letterbox, normalise, read_image
from support.localiser.network import observed
from support.onnx_files import load_onnx
from support.progress import SilentProgress
from support.spec import load_spec
from support.stages.onnx_from_pth import onnx_from_pth
from support.stages.simplified_onnx import simplified_onnx

BATCH = 4
KIT = Path(__file__).resolve().parents[2] / "fixtures/data/shapes"


# A sixteenth of the work; the weights do not depend on the size.
@pytest.fixture(scope="session")
def small():
    spec = load_spec("shapes_d0")
    return spec.model_copy(update={"model": spec.model.model_copy(update={"image_size": 128})})


@pytest.fixture(scope="session")
def checkpoint(small):
    return load_checkpoint(KIT / "shapes_d0.pth", small.model, small.checkpoint)


# Threads that wait for each other make small operators slow where other processes are busy.
@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images(small):
    form = InputFormat.from_model(small.model)
    files = sorted((KIT / "val2017").glob("*.jpg"))[:2]
    return normalise(np.stack([letterbox(read_image(file), form)[0] for file in files]), form)


@pytest.fixture(scope="session")
def eager(checkpoint, small):
    return build_model(checkpoint, small.model)


@pytest.fixture(scope="session")
def network(eager, images):
    return observed(eager, images)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, checkpoint, small):
    store = ArtifactStore(tmp_path_factory.mktemp("exported"), lock_seconds=300)
    return lambda batch: onnx_from_pth(store, checkpoint, small.model, small.graph, batch, SilentProgress())


# Computes shapes and keeps its Pads.
@pytest.fixture(scope="session")
def raw(exported):
    return load_onnx(exported(1).path)


# As it is deployed, at a batch size above 1: the sizes of all Resizes state it.
@pytest.fixture(scope="session")
def clean(exported, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("simplified"), lock_seconds=300)
    return load_onnx(simplified_onnx(store, exported(BATCH), 300, BATCH, SilentProgress()).path)


@pytest.fixture
def graph(clean):
    copy = type(clean)()
    copy.CopyFrom(clean)
    return copy
