import contextlib
import struct
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.errors import WrongDataError
from support.inputs import Geometry, InputFormat, letterbox, normalise, open_image, read_image
from support.spec import load_spec

SIZE = 512
FORMAT = InputFormat.from_model(load_spec("efficientdet_d0").model)
KIT = Path(__file__).resolve().parents[1] / "fixtures/data/shapes/val2017"


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def effdet_tensor():
    """effdet's own transform, collation and prefetcher; the last is made to believe that this is a GPU."""
    torch = pytest.importorskip("torch")
    loader = pytest.importorskip("effdet.data.loader")
    transform = loader.transforms_coco_eval(SIZE, use_prefetcher=True, mean=FORMAT.mean, std=FORMAT.std)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "cuda", lambda self, **_: self)
        patch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
        for name in ("Stream", "current_stream"):
            patch.setattr(torch.cuda, name, lambda: type("Stream", (), {"wait_stream": lambda *_: None})())

        def load(path):
            batch = loader.DetectionFastCollate()([transform(Image.open(path).convert("RGB"), {"img_idx": 0})])
            [(tensor, target)] = loader.PrefetchLoader([batch], mean=FORMAT.mean, std=FORMAT.std)
            return tensor.numpy(), float(target["img_scale"][0])

        yield load


def assert_same_as_effdet(path, effdet_tensor):
    pixels, geometry = letterbox(open_image(path), FORMAT)
    found = normalise(pixels[None], FORMAT)
    required, scale = effdet_tensor(path)
    assert found.shape == required.shape == (1, 3, SIZE, SIZE)
    np.testing.assert_array_equal(found.view(np.uint32), required.view(np.uint32))
    assert np.float32(geometry.scale) == scale


@pytest.mark.parametrize("path", sorted(KIT.glob("*.jpg"))[::12], ids=lambda path: path.stem)
def test_a_kit_image_is_bit_equal_to_effdets_loader(path, effdet_tensor):
    assert_same_as_effdet(path, effdet_tensor)


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), seed=st.integers(0, 9))
@example(width=49, height=49, seed=0)
@example(width=98, height=40, seed=0)
@example(width=103, height=103, seed=0)
@example(width=200, height=214, seed=0)
@example(width=1, height=511, seed=0)
@example(width=512, height=1, seed=0)
@example(width=1, height=1, seed=0)
@example(width=1, height=600, seed=0)
def test_any_size_is_bit_equal_to_effdets_loader(effdet_tensor, width, height, seed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        Image.fromarray(noise(width, height, seed=seed)).save(path)
        try:
            effdet_tensor(path)
        except ValueError:  # effdet's resize to a width or height of 0
            with pytest.raises(WrongDataError, match="shrink to"):
                letterbox(open_image(path), FORMAT)
        else:
            assert_same_as_effdet(path, effdet_tensor)


def saved(folder, kind):
    path = folder / f"{kind}.{'png' if kind in ('palette', 'alpha', 'bilevel') else 'jpg'}"
    image = Image.fromarray(noise(90, 60))
    mode = {"grayscale": "L", "cmyk": "CMYK", "palette": "P", "alpha": "RGBA", "bilevel": "1"}.get(kind, "RGB")
    options = {"progressive": kind == "progressive"} if path.suffix == ".jpg" else {}
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][274] = 6
    image.convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["grayscale", "cmyk", "progressive", "palette", "alpha", "bilevel", "turned"])
def test_every_kind_of_image_is_bit_equal_to_effdets_loader(kind, tmp_path, effdet_tensor):
    assert_same_as_effdet(saved(tmp_path, kind), effdet_tensor)


def test_an_exif_orientation_is_ignored(tmp_path):
    assert read_image(saved(tmp_path, "turned")).shape == (60, 90, 3)


@pytest.mark.parametrize("side", [49, 98, 103, 214])
def test_a_side_whose_own_scale_truncates_comes_out_one_short(side):
    pixels, geometry = letterbox(noise(side, side), FORMAT)
    assert (pixels[511] == FORMAT.fill).all()
    assert (pixels[:, 511] == FORMAT.fill).all()
    assert geometry == Geometry(1 / (512 / side), side, side)


def test_a_portrait_image_is_filled_on_the_right():
    pixels, geometry = letterbox(np.full((640, 480, 3), 7, np.uint8), FORMAT)
    assert (pixels[:, :384] == 7).all()
    assert (pixels[:, 384:] == (124, 116, 104)).all()
    assert geometry == Geometry(scale=1.25, width=480, height=640)


def test_an_array_and_its_image_give_the_same_pixels():
    path = min(KIT.glob("*.jpg"))
    np.testing.assert_array_equal(letterbox(read_image(path), FORMAT)[0], letterbox(open_image(path), FORMAT)[0])


def test_a_side_that_shrinks_to_nothing_is_refused_by_name():
    with pytest.raises(WrongDataError, match=r"thin\.jpg: 1 x 2000 pixels shrink to 0 x 512"):
        letterbox(noise(1, 2000), FORMAT, name="thin.jpg")


@pytest.mark.parametrize(("mean", "std"), [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3)])
def test_every_grey_level_is_normalised_as_effdet_does(mean, std):
    torch = pytest.importorskip("torch")
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    found = normalise(levels, InputFormat(16, mean, std))
    mean_tensor, std_tensor = (torch.tensor([x * 255 for x in part]).view(1, 3, 1, 1) for part in (mean, std))
    required = torch.from_numpy(levels).permute(0, 3, 1, 2).float().sub_(mean_tensor).div_(std_tensor)
    np.testing.assert_array_equal(found.view(np.uint32), required.contiguous().numpy().view(np.uint32))


def test_products_taken_in_float32_give_other_greens():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    mean, std = (np.array(part, np.float32) * 255 for part in (FORMAT.mean, FORMAT.std))
    other = ((levels.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2)
    assert (other != normalise(levels, FORMAT)).sum(axis=(0, 2, 3)).tolist() == [0, 204, 0]
    np.testing.assert_allclose(other, normalise(levels, FORMAT), rtol=0, atol=3e-7)


def test_normalise_writes_where_it_is_told():
    pixels, out = noise(8, 8)[None], np.empty((1, 3, 8, 8), np.float32)
    assert normalise(pixels, FORMAT, out=out) is out
    np.testing.assert_array_equal(out, normalise(pixels, FORMAT))
    assert normalise(pixels, FORMAT).flags.c_contiguous


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def replaced_by_text(path):
    path.write_text("not an image")


@pytest.mark.parametrize("damage", [cut_short, emptied, replaced_by_text, Path.unlink])
def test_a_damaged_file_is_refused_by_name(damage, tmp_path):
    path = saved(tmp_path, "grayscale")
    damage(path)
    with pytest.raises(WrongDataError, match=r"grayscale\.jpg cannot be decoded"):
        read_image(path)


def test_a_format_that_is_no_photograph_is_refused(tmp_path):
    Image.fromarray(noise(4, 4)).save(tmp_path / "picture.gif")
    with pytest.raises(WrongDataError, match="cannot be decoded"):
        read_image(tmp_path / "picture.gif")


@pytest.mark.parametrize("action", ["ignore", "error"])
@pytest.mark.parametrize("side", [12_000, 20_000])
def test_a_decompression_bomb_is_refused(side, action, tmp_path):
    path = saved(tmp_path, "grayscale")
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\xc0") + 5  # height and width in the frame header
    content[place : place + 4] = struct.pack(">HH", side, side)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(WrongDataError, match=r"grayscale\.jpg"):
            open_image(path)
