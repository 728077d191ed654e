"""Multiple-choice benchmarks: VLMEvalKit-style TSV files, read whole and checked before anything runs.

Columns: `index, question, A, B, …, answer, image`, and where there are any `hint, category, l2-category`;
other columns are passed over. `image` is base64, or the index of the row that holds it. An empty option
cell is absent; the texts `None` and `NA` are options like any other, which is why pandas does not read this.
A file is circular (MMBench) if an index reaches 10^6: row k of question i then has index i + k·10^6.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from plast_train.data.images import FORMATS, to_rgb
from plast_train.data.languages import language_name
from plast_train.errors import UserError, nearest

CIRCULAR_STEP = 10**6  # between the indices of one question's rows, in VLMEvalKit's files
_REQUIRED = ("index", "question", "A", "B", "answer", "image")
_LONGEST_INDEX = 64  # characters; a longer image cell is base64
_LARGEST_CELL = 2**31 - 1  # characters; csv's own limit of 131,072 is below many images
_NAME = re.compile(r"(?P<name>.+)_(?P<language>[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)")
_NOT_LANGUAGES = ("dev", "val")  # splits that end public file names, and look like language codes


@dataclass(frozen=True)
class Item:
    """One row: a question about an image, its options and the letter of the right one."""

    index: int
    question: str
    hint: str
    options: dict[str, str]
    answer: str
    category: str
    l2_category: str
    image_bytes: bytes
    group: int | None  # index of the question whose circular row this is; None in a plain file

    @property
    def image(self) -> Image.Image:
        """The image, RGB, decoded at every call: a benchmark's decoded images may not fit in memory."""
        return to_rgb(Image.open(io.BytesIO(self.image_bytes), formats=FORMATS))


@dataclass(frozen=True)
class Benchmark:
    """All rows of the file at `path`. `name` is the file's without the language, `language` a BCP 47 code."""

    path: Path
    name: str
    language: str
    items: list[Item]


@dataclass(frozen=True)
class _Row:
    where: str  # file and line, for messages
    index: int
    cells: dict[str, str]


def read_benchmark(path: Path) -> Benchmark:
    """Read and check `NAME_LANGUAGE.tsv`.

    Raises UserError, with file, line, value and mend, for the first thing that is wrong with it.
    """
    name, language = _name_and_language(path)
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path}: no rows below the header; add questions or remove the file")
    images = _images(rows)
    circular = any(row.index >= CIRCULAR_STEP for row in rows)
    items = [_item(row, images[row.index], circular) for row in rows]
    if circular:
        _check_groups(rows, items)
    return Benchmark(path, name, language, items)


def _name_and_language(path: Path) -> tuple[str, str]:
    """`mmbench_dev_cn.tsv` → `mmbench_dev`, `zh`: public files call Chinese `cn`."""
    match = _NAME.fullmatch(path.stem)
    language = match["language"] if match else ""
    primary, *rest = language.split("-")
    primary = primary.lower()
    if not match or primary in _NOT_LANGUAGES:
        raise UserError(
            f"{path}: the name does not end in a language; call it NAME_LANGUAGE.tsv (_en, _cn, …)"
        )
    language = "-".join(["zh" if primary == "cn" else primary, *rest])
    try:
        language_name(language)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return match["name"], language


def _rows(path: Path) -> Iterator[_Row]:
    lines: dict[int, int] = {}
    for line, cells in _table(path):
        where, cell = f"{path}:{line}", cells["index"].strip()
        if not (cell.isascii() and cell.isdecimal()):
            raise UserError(f"{where}: index {cell!r} is not a whole number; number the rows 0, 1, …")
        index = int(cell)
        if index in lines:
            raise UserError(f"{where}: index {index} is already that of line {lines[index]}; renumber one")
        lines[index] = line
        yield _Row(where, index, cells)


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row's first line and its cells by column."""
    csv.field_size_limit(_LARGEST_CELL)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t", strict=True)
            header = next(reader, [])
            _check_header(path, header)
            line = reader.line_num + 1
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"{path}:{line}: {len(cells)} cells where the header has {len(header)} columns; "
                        "separate the cells by one tab each and quote those that hold a tab or a line break"
                    )
                if cells:
                    yield line, dict(zip(header, cells, strict=True))
                line = reader.line_num + 1
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{_line_not_utf8(path)}: not UTF-8; save the file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not a TSV row ({error}); close its quotation marks") from error


def _line_not_utf8(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError("every line decodes")


def _check_header(path: Path, header: list[str]) -> None:
    for name in _REQUIRED:
        if name not in header:
            raise UserError(
                f"{path}:1: no column '{name}' among {', '.join(header)[:200]!r}; name the columns as "
                f"VLMEvalKit does, separated by tabs{nearest(name, header)}"
            )
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UserError(f"{path}:1: column '{twice[0]}' is there twice; remove one")


def _images(rows: list[_Row]) -> dict[int, bytes]:
    """Index → image file, each distinct image verified once."""
    cells = {row.index: row.cells["image"].strip() for row in rows}
    verified: dict[str, bytes] = {}
    images = {}
    for row in rows:
        cell = cells[row.index]
        if len(cell) <= _LONGEST_INDEX:
            holder = int(cell) if cell.isascii() and cell.isdecimal() else None
            if holder is None or len(cells.get(holder, "")) <= _LONGEST_INDEX:
                raise UserError(
                    f"{row.where}: image {cell!r} is not the index of a row that holds an image; "
                    "give base64 or such an index"
                )
            cell = cells[holder]
        if cell not in verified:
            verified[cell] = _verified_image(row.where, cell)
        images[row.index] = verified[cell]
    return images


def _verified_image(where: str, cell: str) -> bytes:
    try:
        data = base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise UserError(
            f"{where}: image {cell[:20]!r}… is not base64 ({error}); encode the file anew"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data), formats=FORMATS).load()
    except Exception as error:  # Pillow raises many kinds on broken data, each of them the file's fault
        raise UserError(
            f"{where}: image {cell[:20]!r}… cannot be decoded ({error}); "
            "replace it by a whole PNG or JPEG of usual size"
        ) from error
    return data


def _item(row: _Row, image: bytes, circular: bool) -> Item:
    cells = row.cells
    letters = sorted(name for name in cells if len(name) == 1 and "A" <= name <= "Z")
    options = {letter: cells[letter] for letter in letters if cells[letter].strip()}
    answer = cells["answer"].strip()
    if not cells["question"].strip():
        raise UserError(f"{row.where}: index {row.index}: the question is empty; write it or remove the row")
    if len(options) < 2:
        raise UserError(
            f"{row.where}: index {row.index}: fewer than two of the options {', '.join(letters)} have "
            "a text; fill in the others or remove the row"
        )
    if answer not in options:
        raise UserError(
            f"{row.where}: index {row.index}: answer {answer!r} is not among the options "
            f"{', '.join(options)}; name one of them, or fill its cell"
        )
    return Item(
        index=row.index,
        question=cells["question"],
        hint=cells.get("hint", ""),
        options=options,
        answer=answer,
        category=cells.get("category", ""),
        l2_category=cells.get("l2-category", ""),
        image_bytes=image,
        group=row.index % CIRCULAR_STEP if circular else None,
    )


def _check_groups(rows: list[_Row], items: list[Item]) -> None:
    """A question of n options has n rows, one per rotation: fewer would make it easier than the others."""
    groups: dict[int, dict[int, tuple[_Row, Item]]] = defaultdict(dict)
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
