"""
Procedural scenes: objects of ten shapes on a textured, cluttered background.

Every figure in this module is a choice of this project. A scene is a function of its generator's state, so the order
of the random draws is part of the format: another order gives other pictures and the committed ones no longer match.
The committed set was drawn with Pillow 13.0.0 and NumPy 2.4.6. Pillow 11.2.1 and NumPy 1.26.4 give the same pixels;
Pillow before 11.2 fills polygons differently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CATEGORIES", "KINDS", "Population", "Scene", "SceneObject", "render", "shape_mask", "texture"]

#: Category id of each shape, in the order of the classes the network is trained on. The ids have gaps, as COCO's have.
CATEGORIES: Mapping[str, int] = MappingProxyType(
    {
        "disc": 1,
        "square": 2,
        "triangle": 3,
        "star": 5,
        "ring": 8,
        "cross": 13,
        "crescent": 21,
        "hexagon": 34,
        "arrow": 55,
        "bolt": 89,
    }
)
KINDS: tuple[str, ...] = tuple(CATEGORIES)

Point = tuple[float, float]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SceneObject:
    """
    One object of a scene.

    Parameters
    ----------
    kind : str
        Name of its shape, one of `KINDS`.
    box : tuple of int
        (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; covers the object as painted, also what others hide later.
    visible_area : float
        Pixels of the object that no later object covers; for a crowd region, half of its box.
    """

    kind: str
    box: Box
    visible_area: float


@dataclass(frozen=True)
class Scene:
    """A picture, (H, W, 3) uint8 RGB, and the objects in it in the order they were painted."""

    pixels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class Population:
    """
    How many objects a scene gets and how large they are.

    `smallest` and `largest` are diameters in pixels before stretching; an object is never larger than 0.8 of the
    picture's shorter side. `most` is the largest number of objects tried.
    """

    smallest: float = 14
    largest: float = 260
    most: int = 10


def _radial(radii: Sequence[float]) -> tuple[Point, ...]:
    """Corners at equal angles about the origin, the first one on top, y downwards."""
    angles = [-math.pi / 2 + 2 * math.pi * place / len(radii) for place in range(len(radii))]
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


_ARM = 0.32
_POLYGONS: Mapping[str, tuple[Point, ...]] = MappingProxyType(
    {
        "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
        "triangle": _radial([1] * 3),
        "star": _radial([1, 0.42] * 5),
        "cross": (
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        ),
        "hexagon": _radial([1] * 6),
        "arrow": ((0, -1), (0.75, -0.15), (0.28, -0.15), (0.28, 1), (-0.28, 1), (-0.28, -0.15), (-0.75, -0.15)),
        "bolt": ((0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25)),
    }
)
#: The round shapes are an ellipse minus ellipses, given as (left, top, right, bottom) in radii from the centre.
_CUTOUTS: Mapping[str, tuple[tuple[float, float, float, float], ...]] = MappingProxyType(
    {"disc": (), "ring": ((-0.58, -0.58, 0.58, 0.58),), "crescent": ((-0.45, -0.95, 1.35, 0.85),)}
)
_SUPERSAMPLING = 3


def shape_mask(kind: str, size: float, angle: float, stretch: float) -> NDArray[np.uint8]:
    """
    Draw one shape.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    size : float
        Diameter in pixels before stretching; at least 4 is drawn.
    angle : float
        Rotation in radians.
    stretch : float
        Factor of the width, and divisor of the height, before rotation.

    Returns
    -------
    mask : ndarray of uint8, (h, w)
        Coverage from 0 to 255, cropped to the shape.

    Examples
    --------
    >>> shape_mask("square", 20, 0.0, 1.0).shape
    (16, 16)
    """
    diameter = max(4, round(size)) * _SUPERSAMPLING
    # Room for a stretched shape to turn in.
    side = diameter + 2 * int(diameter * 0.8)
    image = Image.new("L", (side, side), 0)
    paint = _paint_round if kind in _CUTOUTS else _paint_polygon
    image = paint(image, kind, diameter / 2, angle, stretch)
    image = image.crop(image.getbbox())
    small = (max(2, round(image.width / _SUPERSAMPLING)), max(2, round(image.height / _SUPERSAMPLING)))
    return np.asarray(image.resize(small, Image.Resampling.BOX))


def _paint_round(image: Image.Image, kind: str, radius: float, angle: float, stretch: float) -> Image.Image:
    draw, centre = ImageDraw.Draw(image), image.width / 2
    across, down = radius * stretch, radius / stretch
    for ink, (left, top, right, bottom) in [(255, (-1, -1, 1, 1)), *((0, cutout) for cutout in _CUTOUTS[kind])]:
        box = (centre + across * left, centre + down * top, centre + across * right, centre + down * bottom)
        draw.ellipse(box, fill=ink)
    return image.rotate(math.degrees(angle), resample=Image.Resampling.BILINEAR)


def _paint_polygon(image: Image.Image, kind: str, radius: float, angle: float, stretch: float) -> Image.Image:
    centre, cos, sin = image.width / 2, math.cos(angle), math.sin(angle)
    stretched = [(x * stretch, y / stretch) for x, y in _POLYGONS[kind]]
    corners = [(centre + radius * (x * cos - y * sin), centre + radius * (x * sin + y * cos)) for x, y in stretched]
    ImageDraw.Draw(image).polygon(corners, fill=255)
    return image


def texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """
    Draw a background: a base colour, noise at five scales, sometimes a wave, and some lines and arcs.

    Returns
    -------
    background : ndarray of float32, (height, width, 3)
        Whole grey levels from 0 to 255.
    """
    # Plane by plane, which takes half the time of colours side by side.
    planes = np.empty((3, height, width), np.float32)
    planes[:] = rng.uniform(20, 235, 3)[:, None, None]
    for cells in (2, 4, 8, 16, 32):
        planes += _noise(rng, cells, height, width)
    if rng.random() < 0.35:
        planes += _wave(rng, height, width)
    image = Image.fromarray(_grey_levels(np.moveaxis(planes, 0, -1)))
    _add_clutter(rng, image)
    return np.asarray(image).astype(np.float32)


def _noise(rng: np.random.Generator, cells: int, height: int, width: int) -> NDArray[np.float32]:
    """Smooth noise over a grid of cells: (3, H, W), or (H, W) if it is the same in all colours."""
    amplitude = rng.uniform(0, 70) / cells**0.5
    grid = rng.normal(0, 1, (cells + 1, cells + 1, 3)).astype(np.float32)
    images = [Image.fromarray(grid[..., colour]) for colour in range(3)]
    layer = np.stack([np.asarray(i.resize((width, height), Image.Resampling.BICUBIC), np.float32) for i in images])
    return np.asarray(amplitude * (layer.mean(0) if rng.random() < 0.5 else layer), np.float32)


def _wave(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    frequency, direction = rng.uniform(0.02, 0.25), rng.uniform(0, math.pi)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    phase = (columns * math.cos(direction) + rows * math.sin(direction)) * frequency
    return np.asarray(rng.uniform(5, 35) * np.sin(phase), np.float32)


def _add_clutter(rng: np.random.Generator, image: Image.Image) -> None:
    draw, ends = ImageDraw.Draw(image), (image.width, image.height, image.width, image.height)
    for _ in range(int(rng.integers(0, 8))):
        red, green, blue = (int(level) for level in rng.integers(0, 255, 3))
        x0, y0, x1, y1 = (int(rng.integers(0, end)) for end in ends)
        if rng.random() < 0.7:
            draw.line((x0, y0, x1, y1), fill=(red, green, blue), width=int(rng.integers(1, 5)))
            continue
        box, sweep = (min(x0, x1), min(y0, y1), max(x0, x1) + 1, max(y0, y1) + 1), int(rng.integers(60, 270))
        draw.arc(box, 0, sweep, fill=(red, green, blue), width=int(rng.integers(1, 5)))


def render(rng: np.random.Generator, height: int, width: int, population: Population | None = None) -> Scene:
    """
    Render one scene.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of everything random; advanced by the call.
    height, width : int
        Size in pixels.
    population : Population, optional
        Number and size of the objects; `Population()` by default.

    Returns
    -------
    scene : Scene
        Between zero and `population.most` objects: what would be too hidden, or too far outside, is left out.
    """
    population = population or Population()
    canvas = _Canvas(texture(rng, height, width))
    largest = min(population.largest, 0.8 * min(height, width))
    for _ in range(int(rng.integers(1, population.most + 1))):
        kind = KINDS[int(rng.integers(len(KINDS)))]
        mask = _random_mask(rng, kind, population.smallest, largest)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        canvas.place(rng, kind, mask, int(x - mask.shape[1] / 2), int(y - mask.shape[0] / 2))
    objects = tuple(SceneObject(item.kind, item.box, item.area - item.hidden) for item in canvas.placed)
    return Scene(_camera(rng, canvas.pixels), objects)


def _random_mask(rng: np.random.Generator, kind: str, smallest: float, largest: float) -> NDArray[np.uint8]:
    size = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
    angle = rng.uniform(0, 2 * math.pi) if rng.random() < 0.7 else rng.normal(0, 0.15)
    return shape_mask(kind, size, angle, math.exp(rng.normal(0, 0.15)))


def _camera(rng: np.random.Generator, pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round to grey levels as a camera would, sometimes with noise or out of focus."""
    if rng.random() < 0.4:
        pixels += rng.normal(0, rng.uniform(1, 12), pixels.shape)
    image = Image.fromarray(_grey_levels(pixels))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return np.asarray(image)


def _grey_levels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return pixels.clip(0, 255).astype(np.uint8)


@dataclass
class _Placed:
    kind: str
    box: Box
    area: int
    hidden: int = 0


class _Canvas:
    """A picture being painted, which remembers the object every pixel belongs to (-1: none)."""

    def __init__(self, pixels: NDArray[np.float32]) -> None:
        self.pixels = pixels
        self.owners: NDArray[np.int16] = np.full(pixels.shape[:2], -1, np.int16)
        self.placed: list[_Placed] = []

    def place(self, rng: np.random.Generator, kind: str, mask: NDArray[np.uint8], left: int, top: int) -> None:
        """Paint an object with its mask's corner at (left, top), unless too little of it or of others would be seen."""
        height, width = self.owners.shape
        x, y = max(0, left), max(0, top)
        part = mask[y - top : height - top, x - left : width - left]
        window = slice(y, y + part.shape[0]), slice(x, x + part.shape[1])
        solid = part > 127
        if min(part.shape) < 4 or solid.sum() < 0.5 * (mask > 127).sum() or not self._cover(window, solid):
            return
        _paint(rng, self.pixels[window], part, mask.shape)
        self.owners[window][solid] = len(self.placed)
        inside = np.argwhere(solid)
        (y0, x0), (y1, x1) = inside.min(0).tolist(), (inside.max(0) + 1).tolist()
        box = (x + x0, y + y0, x + x1, y + y1)
        self.placed.append(_Placed(kind, box, int(solid.sum())))

    def _cover(self, window: tuple[slice, slice], solid: NDArray[np.bool_]) -> bool:
        """Count the pixels about to be hidden, or refuse if an earlier object would lose more than 45 % of itself."""
        owners, counts = np.unique(self.owners[window][solid], return_counts=True)
        losses = [(self.placed[i], int(n)) for i, n in zip(owners, counts, strict=True) if i >= 0]
        if any(item.hidden + loss > 0.45 * item.area for item, loss in losses):
            return False
        for item, loss in losses:
            item.hidden += loss
        return True


def _paint(
    rng: np.random.Generator, pixels: NDArray[np.float32], mask: NDArray[np.uint8], whole: tuple[int, ...]
) -> None:
    """Blend an object into `pixels` in place; `whole` is the size of its mask before it was cut at the border."""
    colour = rng.uniform(0, 255, 3)
    if np.abs(colour - pixels.reshape(-1, 3).mean(0)).max() < 45:
        colour = (colour + 128) % 255  # an object must stand out from what is behind it
    fill = np.full(pixels.shape, colour, np.float32)
    across, down = rng.uniform(-1, 1, 2)
    rows, columns = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]]
    slope = across * (columns / whole[1] - 0.5) + down * (rows / whole[0] - 0.5)
    fill += (rng.uniform(0, 50) * slope)[..., None]
    if rng.random() < 0.3:
        fill += rng.normal(0, rng.uniform(3, 18), fill.shape)
    opacity = (mask.astype(np.float32) / 255 * rng.uniform(0.78, 1.0))[..., None]
    pixels[:] = pixels * (1 - opacity) + fill * opacity
