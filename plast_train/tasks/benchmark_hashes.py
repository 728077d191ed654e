"""What a run's benchmarks are, by content: the hashes that decide whether an evaluation stands.

A benchmark counts with the pictures that its file names; tables hold theirs inside.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plast_train.config import EvaluateConfig
from plast_train.data.images import ImageDefect, locate_image
from plast_train.data.readers import Defect, read_entries
from plast_train.run_folder import content_hash, sha256_of
from plast_train.tasks.exams import IMAGE


def benchmark_hashes(config: EvaluateConfig) -> dict[str, str]:
    """By the name of file or folder: the same benchmark is the same wherever it lies. Files of one name in
    several folders, which hold other languages, are `NAME`, `NAME (2)`, … in the order of their hashes, so
    that neither folders nor order count."""
    root = None if config.image_root is None else Path(config.image_root)
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in map(Path, config.benchmarks):
        by_name[path.name].append(benchmark_hash(path, root))
    return {
        name if number == 1 else f"{name} ({number})": value
        for name, values in by_name.items()
        for number, value in enumerate(sorted(values), start=1)
    }


def benchmark_hash(path: Path, image_root: Path | None) -> str:
    """SHA-256 of a benchmark's file or folder and, by the names it has for them, of the pictures that it
    names. Contents, as benchmarks are small beside training data and go to other machines. A picture that is
    missing is hashed as such: telling it is the reader's to do."""
    content = content_hash(path)
    names = sorted(set(_named_images(path)))
    if not names:
        return content
    pictures = [(name, _image_hash(name, image_root or path.parent)) for name in names]
    return hashlib.sha256(json.dumps([content, pictures]).encode()).hexdigest()


def _image_hash(name: str, root: Path) -> str | None:
    try:
        return sha256_of(locate_image(name, root))
    except (ImageDefect, OSError):
        return None


def _named_images(path: Path) -> Iterator[str]:
    """The names of pictures in a list or in JSON lines; none in a file that cannot be read as such."""
    if path.suffix == ".jsonl":
        for found in read_entries(path):
            if not isinstance(found, Defect) and isinstance(found[1].get("image"), str):
                yield found[1]["image"]
    elif path.suffix == ".json":
        try:
            tree = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError):
            return
        for text in _texts(tree):
            yield from IMAGE.findall(text)


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list | dict):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(value)
