"""From an image file to the network's input tensor, bit for bit as effdet's own loader does it."""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.errors import WrongDataError
from support.plain_files import read_plain
from support.spec import Model

__all__ = ["Geometry", "InputFormat", "image_bytes", "letterbox", "normalise", "open_image", "read_image"]

#: Pixels above which Pillow suspects a decompression bomb (its own default, here an error and not a warning).
MAX_PIXELS = 1024**3 // 4 // 3
#: Bytes of an image file: more than those pixels take unpacked.
MAX_BYTES = 2**28
#: File formats we let Pillow try. Its others include some that start external programs.
FORMATS = ("JPEG", "PNG")
# What Pillow raises on damaged files, besides its own errors.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class Geometry:
    """
    How a network input maps back to its image.

    Parameters
    ----------
    scale : float
        Image pixels per network pixel; effdet's ``img_scale``.
    width, height : int
        Size of the image in pixels.
    """

    scale: float
    width: int
    height: int

    @classmethod
    def of(cls, width: int, height: int, size: int) -> Geometry:
        """
        Return the geometry of an image of `width` × `height` pixels in a square of `size` pixels.

        Examples
        --------
        >>> Geometry.of(640, 480, 512)
        Geometry(scale=1.25, width=640, height=480)
        """
        return cls(1.0 / _factor(width, height, size), width, height)


@dataclass(frozen=True)
class InputFormat:
    """What the network expects: a square of `size` pixels, RGB, normalised by `mean` and `std` (fractions of 1)."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_model(cls, model: Model) -> InputFormat:
        """Take the format from the model section of a spec."""
        return cls(model.image_size, model.mean, model.std)

    @property
    def fill(self) -> tuple[int, int, int]:
        """
        The grey levels around the picture: the mean colour, rounded as effdet does (halves to even).

        Examples
        --------
        >>> InputFormat(512, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).fill
        (124, 116, 104)
        """
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue


def image_bytes(path: Path, sha256: str = "") -> bytes:
    """
    Read an image file whole.

    Parameters
    ----------
    path : Path
        The file.
    sha256 : str, optional
        What the file had when the run began.

    Raises
    ------
    WrongDataError
        If it has changed since then.
    OSError
        If it cannot be read, or is too large for an image.
    """
    data = read_plain(path, MAX_BYTES)
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise WrongDataError(
            f"{path} has changed since this run began",
            required="a data set that nothing writes to during a run",
            remedy="run again, which hashes all images anew",
        )
    return data


def open_image(path: Path, sha256: str = "") -> Image.Image:
    """
    Decode an image file to RGB, as it is stored: like effdet, without turning it by its EXIF orientation.

    Parameters
    ----------
    path, sha256
        As for `image_bytes`.

    Raises
    ------
    WrongDataError
        If the file is no JPEG or PNG, is damaged or cut short, claims an absurd number of pixels, or has changed.
    """
    try:
        with Image.open(BytesIO(image_bytes(path, sha256)), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise WrongDataError(f"{path}: {image.width} x {image.height} pixels", required=f"at most {MAX_PIXELS}")
            return image.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *_DAMAGED) as error:
        found = f"{path} cannot be decoded: {error}"
        raise WrongDataError(found, required="an intact JPEG or PNG", remedy="copy the file again") from error


def read_image(path: Path) -> NDArray[np.uint8]:
    """
    Decode an image file.

    Returns
    -------
    image : ndarray of uint8, shape (height, width, 3)
        RGB, row by row from the top left.

    Raises
    ------
    WrongDataError
        As `open_image` does.
    """
    return np.asarray(open_image(path))


def letterbox(
    image: Image.Image | NDArray[np.uint8], fmt: InputFormat, *, name: str = "the image"
) -> tuple[NDArray[np.uint8], Geometry]:
    """
    Scale a picture into the top left of the network's square and fill the rest with the mean colour.

    The order of the float operations is that of effdet 0.4.1 (data/transforms.py, ResizePad). It matters: a side of 49
    pixels comes out as 511, since 49 × (512 / 49) is a little less than 512.

    Parameters
    ----------
    image : PIL image in RGB, or ndarray of uint8, shape (height, width, 3)
    fmt : InputFormat
    name : str
        What an error calls the image.

    Returns
    -------
    pixels : ndarray of uint8, shape (S, S, 3)
    geometry : Geometry

    Raises
    ------
    WrongDataError
        If a side would shrink to nothing, where effdet raises too.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = picture.size
    factor = _factor(width, height, fmt.size)
    scaled = int(width * factor), int(height * factor)
    if 0 in scaled:
        found = f"{name}: {width} x {height} pixels shrink to {scaled[0]} x {scaled[1]}"
        raise WrongDataError(found, required=f"sides that differ by less than {fmt.size} times")
    canvas = Image.new("RGB", (fmt.size, fmt.size), fmt.fill)
    canvas.paste(picture.resize(scaled, Image.Resampling.BILINEAR))
    return np.asarray(canvas), Geometry.of(width, height, fmt.size)


def _factor(width: int, height: int, size: int) -> float:
    return min(size / height, size / width)


def normalise(
    pixels: NDArray[np.uint8], fmt: InputFormat, *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """
    Turn grey levels into what the network was trained on: (x - mean · 255) / (std · 255).

    Bit-equal to effdet 0.4.1 (data/loader.py, PrefetchLoader), which rounds mean · 255 and std · 255 to float32 after
    the product; a product in float32 gives other values for four of five grey levels of green.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (B, S, S, 3)
    fmt : InputFormat
    out : ndarray of float32, shape (B, 3, S, S), optional
        Where to write. Fresh memory costs as much as the arithmetic.

    Returns
    -------
    tensors : ndarray of float32, shape (B, 3, S, S), C-contiguous
    """
    batch, height, width, channels = pixels.shape
    tensors = np.empty((batch, channels, height, width), np.float32) if out is None else out
    np.copyto(tensors, pixels.transpose(0, 3, 1, 2))
    tensors -= _levels(fmt.mean)
    tensors /= _levels(fmt.std)
    return tensors


def _levels(fractions: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.array([fraction * 255 for fraction in fractions]).astype(np.float32).reshape(3, 1, 1)
