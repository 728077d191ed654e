"""Multiple-choice tables: TSV files, Parquet files or Hugging Face folders in VLMEvalKit's or CVQA's columns.

VLMEvalKit's columns: `index, question, A, B, …, answer, image`, and where there are any `hint, category,
l2-category`; other columns are passed over. `image` is base64 (or, in a data set, an image), or the index of
the row that holds it. An empty option cell is absent; the texts `None` and `NA` are options like any other.
A file is circular (MMBench) if an index reaches 10^6: row k of question i then has index i + k·10^6.

CVQA's columns (arXiv 2406.05967): `Question, Options` (a list), `Label` (the right option's number from 0),
`image`, and where there is one `Category`; rows are numbered as they come.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TypeGuard

from PIL import Image

from plast_train.data.images import IMAGE_FORMATS
from plast_train.errors import UserError
from plast_train.tasks.benchmark import (
    Benchmark,
    Format,
    Item,
    check_characters,
    check_choice,
    name_and_language,
)
from plast_train.tasks.matching import match_choice
from plast_train.tasks.prompts import ask_choice
from plast_train.tasks.tables import COLUMNS, Row, read_table, read_tsv, require_columns

CIRCULAR_STEP = 10**6  # between the indices of one question's rows, in VLMEvalKit's files
_CVQA = ("Question", "Options", "Label", "image")
_LONGEST_INDEX = 64  # characters; a longer image cell is base64


@dataclass(frozen=True)
class _Numbered:
    where: str
    index: int
    cells: dict[str, Any]


def _read(path: Path, _image_root: Path) -> list[Benchmark]:
    name, language = name_and_language(path)
    items = _items(path, read_tsv(path) if path.suffix == ".tsv" else read_table(path))
    return [Benchmark(path, name, language, items, FORMAT)]


def _items(path: Path, rows: list[Row]) -> list[Item]:
    if rows and "Options" in rows[0].cells:
        require_columns(path, rows, _CVQA)
        rows = [_of_cvqa(number, row) for number, row in enumerate(rows)]
    require_columns(path, rows, COLUMNS)
    numbered = _numbered(rows)
    images = _images(numbered)
    circular = any(row.index >= CIRCULAR_STEP for row in numbered)
    items = [_item(row, images[row.index], circular) for row in numbered]
    if circular:
        _check_groups(numbered, items)
        return items
    return _with_pairs(items)


def _of_cvqa(number: int, row: Row) -> Row:
    """The row in VLMEvalKit's columns."""
    cells, options = row.cells, row.cells["Options"]
    if not isinstance(options, list) or not 2 <= len(options) <= len(ascii_uppercase):
        raise UserError(f"{row.where}: Options is {options!r:.60}; give a list of two texts or more")
    label = cells["Label"]
    if not label.isdecimal() or int(label) >= len(options):
        raise UserError(
            f"{row.where}: Label {label!r} is not an option's number (0 to {len(options) - 1}); "
            "a split whose answers are withheld cannot be scored"
        )
    named = dict(zip(ascii_uppercase, options, strict=False))
    category = cells.get("Category", "")
    rest = {"index": str(number), "question": cells["Question"], "answer": ascii_uppercase[int(label)]}
    return Row(row.where, {**rest, **named, "image": cells["image"], "category": category})


def _numbered(rows: Sequence[Row]) -> list[_Numbered]:
    seen: dict[int, str] = {}
    numbered = []
    for row in rows:
        cell = row.cells["index"].strip()
        if not (cell.isascii() and cell.isdecimal()):
            raise UserError(f"{row.where}: index {cell!r} is not a whole number; number the rows 0, 1, …")
        index = int(cell)
        if index in seen:
            raise UserError(f"{row.where}: index {index} is already that of {seen[index]}; renumber one")
        seen[index] = _short(row.where)
        numbered.append(_Numbered(row.where, index, row.cells))
    return numbered


def _short(where: str) -> str:
    """`line 7` of `FILE:7`, `row 7` of `FILE, row 7`."""
    _, comma, row = where.rpartition(", row ")
    return f"row {row}" if comma else f"line {where.rpartition(':')[2]}"


def _images(rows: Sequence[_Numbered]) -> dict[int, bytes]:
    """Index → image file, each distinct image verified once."""
    cells = {row.index: _image_cell(row) for row in rows}
    verified: dict[str | bytes, bytes] = {}
    images = {}
    for row in rows:
        cell = cells[row.index]
        if _is_index(cell):
            holder = int(cell) if cell.isascii() and cell.isdecimal() else None
            if holder is None or _is_index(cells.get(holder, "")):
                raise UserError(
                    f"{row.where}: image {cell!r} is not the index of a row that holds an image; "
                    "give base64 or such an index"
                )
            cell = cells[holder]
        if cell not in verified:
            verified[cell] = _verified_image(row.where, cell)
        images[row.index] = verified[cell]
    return images


def _image_cell(row: _Numbered) -> str | bytes:
    """Base64, an index, or an image's bytes. VLMEvalKit writes several images as a list."""
    cell = row.cells["image"]
    if isinstance(cell, bytes) and len(cell) <= _LONGEST_INDEX and cell.strip().isdigit():
        cell = cell.decode()  # an index in a binary column
    if isinstance(cell, list) or (isinstance(cell, str) and cell.lstrip().startswith("[")):
        raise UserError(
            f"{row.where}: index {row.index}: several images; the models evaluated here take one, so take "
            "the row out"
        )
    return cell.strip() if isinstance(cell, str) else cell


def _verified_image(where: str, cell: str | bytes) -> bytes:
    """The image file that a cell holds, as bytes or base64; decoded once, so that it will not fail later."""
    data, shown = cell, f"of {len(cell)} bytes"
    if isinstance(data, str):
        shown = repr(data[:20])
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise UserError(f"{where}: image {shown}… is not base64 ({error}); encode it again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data), formats=IMAGE_FORMATS).load()
    except Exception as error:  # Pillow raises many kinds on broken data, each of them the file's fault
        raise UserError(
            f"{where}: image {shown}… cannot be decoded ({error}); "
            "replace it by a whole PNG or JPEG of usual size"
        ) from error
    return data


def _is_index(cell: str | bytes) -> TypeGuard[str]:
    return isinstance(cell, str) and len(cell) <= _LONGEST_INDEX


def _item(row: _Numbered, image: bytes, circular: bool) -> Item:
    cells = row.cells
    letters = sorted(name for name in cells if len(name) == 1 and "A" <= name <= "Z")
    options = {letter: cells[letter] for letter in letters if cells[letter].strip()}
    where = f"{row.where}: index {row.index}"
    check_choice(where, cells["question"], letters, options, cells["answer"])
    item = Item(
        index=row.index,
        question=cells["question"],
        hint=cells.get("hint", ""),
        options=options,
        answer=cells["answer"].strip(),
        category=cells.get("category", ""),
        l2_category=cells.get("l2-category", ""),
        image_bytes=image,
        group=row.index % CIRCULAR_STEP if circular else None,
    )
    check_characters(where, item)
    return item


def _check_groups(rows: Sequence[_Numbered], items: Sequence[Item]) -> None:
    """A question of n options has n rows, one per rotation: fewer would make it easier than the others."""
    groups: dict[int, dict[int, tuple[_Numbered, Item]]] = defaultdict(dict)
    for row, item in zip(rows, items, strict=True):
        rotation, question = divmod(item.index, CIRCULAR_STEP)
        groups[question][rotation] = row, item
    for question, rotations in groups.items():
        first, item = rotations[min(rotations)]
        expected = range(len(item.options))
        missing = [question + k * CIRCULAR_STEP for k in expected if k not in rotations]
        surplus = [question + k * CIRCULAR_STEP for k in rotations if k not in expected]
        if missing or surplus:
            what = f"lacks index {missing[0]}" if missing else f"has index {surplus[0]} too many"
            raise UserError(
                f"{first.where}: circular question {question} has {len(expected)} options and {what}; give "
                f"it one row per option (index {question} + k·{CIRCULAR_STEP}), or, if the file is a plain "
                f"one, number its rows below {CIRCULAR_STEP}"
            )


def _with_pairs(items: Sequence[Item]) -> list[Item]:
    """Marks yes/no questions that belong together: about the same image, with the same two options, of which
    one question has the first right and the other the second (as in MME and MMMB)."""
    waiting: dict[tuple[bytes | None, frozenset[str]], list[int]] = defaultdict(list)
    pairs: dict[int, int] = {}
    for at, item in enumerate(items):
        if len(item.options) != 2:
            continue
        same = waiting[item.image_bytes, frozenset(item.options.values())]
        right = item.options[item.answer]
        other = next((i for i in same if items[i].options[items[i].answer] != right), None)
        if other is None:
            same.append(at)
        else:
            same.remove(other)
            pairs[other] = pairs[at] = min(items[other].index, item.index)
    return [replace(item, pair=pairs.get(at)) for at, item in enumerate(items)]


def _recognises(path: Path) -> bool:
    return path.is_dir() or path.suffix in (".tsv", ".parquet")


def _image_names(_path: Path) -> tuple[str, ...]:
    return ()  # images are inside the table


FORMAT = Format(
    files=(
        "NAME_LANGUAGE.tsv, NAME_LANGUAGE.parquet or a Hugging Face folder NAME_LANGUAGE (VLMEvalKit's or "
        "CVQA's columns)"
    ),
    recognises=_recognises,
    read=_read,
    image_names=_image_names,
    ask=ask_choice,
    match=match_choice,
)
