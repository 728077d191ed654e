"""Where the object is that a question asks about: JSON lines of a record's `id` and a `box`, which is left,
top, right, bottom in pixels of the image file. Imports no torch, so that the launcher can check the file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from plast_train.data.questions import Record
from plast_train.errors import UserError, nearest

Box = tuple[float, float, float, float]


def read_boxes(path: Path) -> dict[str, Box]:
    """Record id → box.

    Raises:
        UserError: the file cannot be read, or a line is no such object, has a box without area, or an id that
            another line has.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"analyse.boxes: {path} cannot be read ({error}); mend its path") from None
    boxes: dict[str, Box] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        identity, box = _read_line(line, f"{path}:{number}")
        if identity in boxes:
            raise UserError(f"{path}:{number}: id {identity!r} has a box already; remove one")
        boxes[identity] = box
    return boxes


def _read_line(line: str, where: str) -> tuple[str, Box]:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); mend or remove the line") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise UserError(f'{where}: no text "id"; write {{"id": "…", "box": [left, top, right, bottom]}}')
    box: Any = entry.get("box")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise UserError(f"{where}: box {box!r} is not [left, top, right, bottom] in pixels")
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise UserError(f"{where}: box {box} has no area; give left < right and top < bottom")
    return entry["id"], (left, top, right, bottom)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def check_boxes(path: Path, records: Sequence[Record]) -> None:
    """Refuses a file that does not fit the records.

    Raises:
        UserError: no id is a record's; a box is not inside its record's image, or the record has none.
    """
    boxes = read_boxes(path)
    known = {record.id: record for record in records}
    if not boxes.keys() & known.keys():
        first = next(iter(boxes), "")
        raise UserError(f"{path}: no id is that of a record, e.g. {first!r}{nearest(first, known)}")
    for identity, (left, top, right, bottom) in boxes.items():
        if identity not in known:
            continue
        image = known[identity].image
        if image is None:
            raise UserError(f"{path}: id {identity!r}: the record has no image; remove the box")
        with Image.open(image) as opened:
            width, height = opened.size
        if left < 0 or top < 0 or right > width or bottom > height:
            raise UserError(
                f"{path}: id {identity!r}: the box leaves its image of {width} x {height} pixels; mend it"
            )
