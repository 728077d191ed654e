"""Benchmark tables as they are: TSV files, Parquet files, folders of Hugging Face data sets → `Row`s.

A TSV is not read by pandas, for which the option texts `None` and `NA` would be empty cells. In a data set
null is an empty cell and a number its digits, so the same content gives the same rows from either.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plast_train.errors import UserError, nearest

COLUMNS = ("index", "question", "A", "B", "answer", "image")  # that a multiple-choice table must have
_LARGEST_CELL = 2**31 - 1  # characters; csv's own limit of 131,072 is below many images


@dataclass(frozen=True)
class Row:
    """`where` is file and line, or row, for messages. Cells by column: texts, an image inside a data set as
    the bytes of its file, a list as the list of its texts."""

    where: str
    cells: dict[str, Any]


def read_tsv(path: Path) -> list[Row]:
    """Raises UserError for what is no TSV in UTF-8, and for rows of other lengths than the header's."""
    csv.field_size_limit(_LARGEST_CELL)
    line = 1
    rows = []
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
                    rows.append(Row(f"{path}:{line}", dict(zip(header, cells, strict=True))))
                line = reader.line_num + 1
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{_line_not_utf8(path)}: not UTF-8; save the file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not a TSV row ({error}); close its quotation marks") from error
    return rows


def read_table(path: Path) -> list[Row]:
    """Rows of a Parquet file, a folder of Parquet files, or a folder that `datasets` saved.

    Raises UserError for what cannot be read as one of them, and for a data set of several splits.
    """
    import datasets

    from plast_train.data.readers_datasets import load_data_set

    datasets.disable_progress_bars()
    table = load_data_set(str(path), "evaluate.benchmarks")
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return [
        Row(f"{path}, row {number}", {column: _cell(value) for column, value in row.items()})
        for number, row in enumerate(table)
    ]


def require_columns(path: Path, rows: list[Row], columns: Sequence[str]) -> None:
    """Raises UserError for a table without rows, or without one of the columns."""
    if not rows:
        raise UserError(f"{path}: no rows below the header; add questions or remove the file")
    _require(str(path), list(rows[0].cells), columns, "")


def _require(where: str, header: list[str], columns: Sequence[str], how: str) -> None:
    for name in columns:
        if name not in header:
            raise UserError(
                f"{where}: no column '{name}' among {', '.join(header)[:200]!r}; name the columns as "
                f"VLMEvalKit does{how}{nearest(name, header)}"
            )


def _check_header(path: Path, header: list[str]) -> None:
    _require(f"{path}:1", header, COLUMNS, ", separated by tabs")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UserError(f"{path}:1: column '{twice[0]}' is there twice; remove one")


def _line_not_utf8(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError("every line decodes")


def _cell(value: Any) -> Any:
    if value is None or value != value:  # null, and the NaN that pandas writes for it
        return ""
    if isinstance(value, dict) and {"bytes", "path"} >= set(value):  # datasets.Image, undecoded
        return value["bytes"] if value.get("bytes") is not None else _cell(value.get("path"))
    if isinstance(value, list):
        return [_cell(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():  # an integer column that had a null once
        value = int(value)
    return value if isinstance(value, bytes) else str(value)
