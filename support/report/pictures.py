"""The worst images, drawn with what is there and what was found."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from support.detections import Detections
from support.report.worst import WorstImage

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

__all__ = ["COLOURS", "SHOWN_LOST", "SHOWN_SCORE", "draw", "draw_worst", "picture_name"]

#: Colours of Okabe and Ito, which most colour-blind readers tell apart; the forms differ too.
COLOURS = {"truth": "#009e73", "reference": "#0072b2", "candidate": "#e69f00"}
#: Longest side in pixels: enough to see a box, little enough to send a page.
SIDE = 640
#: Weaker detections hide an image under their number. Of those lost or new, so many are drawn whatever their score.
SHOWN_SCORE, SHOWN_LOST = 0.3, 8

_Box = tuple[float, float, float, float]


def picture_name(image_id: int) -> str:
    """
    Name of the picture of an image inside a bundle.

    Examples
    --------
    >>> picture_name(139)
    'worst_000000000139.jpg'
    """
    return f"worst_{image_id:012d}.jpg"


def draw_worst(worst: Iterable[WorstImage], paths: Mapping[int, Path]) -> dict[str, bytes]:
    """
    Draw the worst images.

    Parameters
    ----------
    worst : iterable of WorstImage
        From `support.report.worst.worst_images`.
    paths : mapping of int to Path
        Where the images lie, by id.

    Returns
    -------
    pictures : dict of str to bytes
        JPEG files by `picture_name`.

    Raises
    ------
    WrongDataError
        If an image cannot be read.
    """
    return {picture_name(image.image_id): draw(image, paths[image.image_id]) for image in worst}


def draw(worst: WorstImage, path: Path) -> bytes:
    """
    Draw the boxes of one image as a JPEG.

    Objects are green corners, detections of the reference wide blue frames, those of the candidate thin orange ones
    inside them; so a blue frame alone is a loss and an orange one alone is new.

    Parameters
    ----------
    worst : WorstImage
        Boxes in pixels of the image.
    path : Path
        The image.

    Raises
    ------
    WrongDataError
        If the image cannot be read.
    """
    from PIL import ImageDraw

    from support.inputs import open_image

    image = open_image(path)
    scale = min(1.0, SIDE / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    canvas = ImageDraw.Draw(image)
    for boxes, colour, width in (
        ([*_shown(worst.reference), *_every(worst.lost)[:SHOWN_LOST]], COLOURS["reference"], 5),
        ([*_shown(worst.candidate), *_every(worst.new)[:SHOWN_LOST]], COLOURS["candidate"], 2),
    ):
        for box in boxes:
            canvas.rectangle(_scaled(box, scale), outline=colour, width=width)
    for box in _every(worst.truth):
        _draw_corners(canvas, _scaled(box, scale))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _every(detections: Detections) -> list[_Box]:
    return [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in detections.boxes]


def _shown(detections: Detections) -> list[_Box]:
    return [box for box, score in zip(_every(detections), detections.scores, strict=True) if score >= SHOWN_SCORE]


def _scaled(box: Sequence[float], scale: float) -> _Box:
    x0, y0, x1, y1 = (edge * scale for edge in box)
    return x0, y0, x1, y1


def _draw_corners(canvas: ImageDraw, box: _Box) -> None:
    x0, y0, x1, y1 = box
    arm = max(3.0, min(x1 - x0, y1 - y0) / 4)
    for x, toward_x in ((x0, arm), (x1, -arm)):
        for y, toward_y in ((y0, arm), (y1, -arm)):
            canvas.line([(x + toward_x, y), (x, y), (x, y + toward_y)], fill=COLOURS["truth"], width=3)
