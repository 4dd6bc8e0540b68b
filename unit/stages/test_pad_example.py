from support.artifacts import file_sha256
from support.onnx_files import input_shapes, load_onnx, opset_of
from support.pads import kept_pads
from support.stages.pad_example import make_pad_example, pad_example, pad_example_path


def test_the_committed_graph_is_the_one_the_function_makes():
    assert load_onnx(pad_example_path()) == make_pad_example()


def test_it_keeps_its_infinite_pads_and_is_small():
    model = load_onnx(pad_example().path)
    assert kept_pads(model) == ["pad_shared", "pad_own"]
    assert opset_of(model) == 11
    assert dict(input_shapes(model)) == {"x": (1, 3, 8, 8)}
    assert pad_example_path().stat().st_size < 4096


def test_it_comes_with_its_hash():
    assert pad_example().sha256 == file_sha256(pad_example_path())
