import dataclasses

import pytest

from support.simulator.om import BrokenOmError, Om, OmTensor, read_om, write_om

OM = Om(
    inputs=(OmTensor("x.1", (4, 3, 512, 512), "float32"),),
    outputs=(OmTensor("Conv_7:0:boxes", (4, 36, 64, 64), "float32"),),
    soc_version="Ascend310P3",
    precision_mode="allow_mix_precision",
    lowered=("Conv_1", "Conv_7"),
    gears=(),
    aipp=False,
    command="atc.bin --framework=5",
    version="8.0.0",
    onnx=bytes(range(256)) * 8,
)


@pytest.fixture
def path(tmp_path):
    write_om(tmp_path / "d0.om", OM)
    return tmp_path / "d0.om"


def test_a_model_is_read_as_it_was_written(path):
    assert read_om(path) == OM


def test_a_dynamic_model_is_read_as_it_was_written(tmp_path):
    dynamic = dataclasses.replace(OM, gears=(1, 4), inputs=(OmTensor("x", (-1, 3, 8, 8), "float32"),))
    write_om(tmp_path / "dynamic.om", dynamic)
    assert read_om(tmp_path / "dynamic.om") == dynamic


@pytest.mark.parametrize("kept", [20, 60, 300, -1])
def test_a_file_cut_short_is_damaged(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BrokenOmError, match="is damaged"):
        read_om(path)


def test_one_changed_byte_of_its_facts_is_damage(path):
    path.write_bytes(path.read_bytes().replace(b"Ascend310P3", b"Ascend310P1"))
    with pytest.raises(BrokenOmError, match="is damaged"):
        read_om(path)


def test_one_changed_byte_of_its_graph_is_damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BrokenOmError, match="is damaged"):
        read_om(path)


@pytest.mark.parametrize("content", [b"", b"\x08\x07\x12\x04onnx"])
def test_another_file_is_no_model(path, content):
    path.write_bytes(content)
    with pytest.raises(BrokenOmError, match="is not a compiled model"):
        read_om(path)
