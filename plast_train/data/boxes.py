"""Where in its image the object is that a question asks about, for records whose source knows it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from PIL import Image

from plast_train.data.images import CheckedImage

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image file


def as_box(value: Any) -> Box | None:
    """`value` as JSON has it, which `box_problems` found fit."""
    if value is None:
        return None
    left, top, right, bottom = value
    return left, top, right, bottom


def box_problems(box: Any, image: Any) -> Iterator[str]:
    """What is wrong with a record's `box`; `image` is None, a checked image, or a defect of it."""
    if box is None:
        return
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        yield f"'box' is {box!r:.60}; write [left, top, right, bottom] in pixels or leave it out"
        return
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        yield f"'box' {box} has no area; give left < right and top < bottom"
    elif image is None:
        yield "there is a 'box' but no image; remove it"
    elif isinstance(image, CheckedImage):
        with Image.open(image.path) as opened:
            width, height = opened.size
        if left < 0 or top < 0 or right > width or bottom > height:
            yield f"'box' {box} leaves its image of {width}x{height} pixels; mend it"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
