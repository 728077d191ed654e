"""Parallel questions in a Hugging Face data set, one column a language: a hub name, a folder or Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from plast_train.config import DataConfig
from plast_train.data.images import store_image
from plast_train.data.readers import RawRecord
from plast_train.errors import UserError, nearest

HUB = "hf:"


def read_dataset(entry: str, config: DataConfig, root: Path | None) -> Iterator[RawRecord]:
    """Rows of `hf:NAME`, `hf:NAME@SPLIT`, a folder of `save_to_disk`, a Parquet file or a folder of them.

    `data.columns` maps `id`, `image`, `answer` and language codes to columns; a field that it does not name
    is the column of the same name. Images inside the data set are written once, by their SHA-256, to
    `plast-images` in the cache of `datasets` (HF_DATASETS_CACHE), for an image is a path everywhere.

    Raises:
        UserError: no such data set, more than one split, a column that is not there, a full or read-only
            cache.
    """
    datasets.disable_progress_bars()
    dataset = load_data_set(entry, "data.questions")
    columns = _columns(entry, dataset, config)
    image = columns.get("image")
    if image is not None and isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    inside = Path(datasets.config.HF_DATASETS_CACHE) / "plast-images"
    beside = root or (Path() if entry.startswith(HUB) else _folder(Path(entry)))
    for number, row in enumerate(dataset.select_columns(sorted(set(columns.values())))):
        field = {name: row[column] for name, column in columns.items()}
        name, content = _image(field.get("image"))
        if content is not None:
            name = _store(content, inside)
        yield RawRecord(
            where=f"{entry}, row {number}",
            id=field["id"],
            questions={language: field[language] for language in config.languages},
            image=name,
            answer=field.get("answer"),
            root=beside if content is None else inside,
        )


def load_data_set(entry: str, option: str) -> datasets.Dataset:
    """The one split of what `entry`, a value of the config's `option`, names; see `read_dataset`."""
    path = Path(entry)
    try:
        if entry.startswith(HUB):
            name, _, split = entry.removeprefix(HUB).partition("@")
            loaded = datasets.load_dataset(name, split=split or None)
        elif (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(entry)
        else:
            files = sorted(str(p) for p in path.rglob("*.parquet")) if path.is_dir() else entry
            if not files:
                raise UserError(f"{entry}: neither a folder of save_to_disk nor one with .parquet files")
            loaded = datasets.Dataset.from_parquet(files)
    except UserError:
        raise
    except Exception as error:  # datasets, its hub client and Arrow each have errors of their own
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{entry}: cannot be read as a data set ({what}); see {option}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            how = f"{entry}@SPLIT" if entry.startswith(HUB) else f"{entry}/SPLIT"
            raise UserError(f"{entry} has the splits {', '.join(loaded)}; name one: {how}")
        loaded = next(iter(loaded.values()))
    return loaded


def _columns(entry: str, dataset: datasets.Dataset, config: DataConfig) -> dict[str, str]:
    """Field → column, for the fields that the data set has."""
    fields = ["id", *config.languages, "image", "answer"]
    for field in config.columns:
        if field not in fields:
            raise UserError(
                f"data.columns: '{field}' is not a field{nearest(field, fields)} ({', '.join(fields)})"
            )
    columns = {field: config.columns.get(field, field) for field in fields}
    for field, column in columns.copy().items():
        if column in dataset.column_names:
            continue
        if field in ("image", "answer") and field not in config.columns:
            del columns[field]
            continue
        raise UserError(
            f"{entry}: no column '{column}' for '{field}'{nearest(column, dataset.column_names)} "
            f"(it has: {', '.join(dataset.column_names)}); set data.columns={{{field}: COLUMN}}"
        )
    return columns


def _image(value: Any) -> tuple[Any, bytes | None]:
    """An image column's value as a path or as a file's content."""
    if isinstance(value, dict):  # datasets.Image undecoded, and how Parquet files hold it
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    return (None, value) if isinstance(value, bytes) else (value, None)


def _store(content: bytes, folder: Path) -> str:
    try:
        return store_image(content, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: an image cannot be written ({error.strerror}); "
            "set HF_DATASETS_CACHE to a folder with room for the data set's images"
        ) from None


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent
