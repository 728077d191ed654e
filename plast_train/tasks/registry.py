"""The benchmark formats, and what is done with benchmarks of any of them: reading and hashing."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from plast_train.config import EvaluateConfig
from plast_train.data.images import ImageDefect, locate_image
from plast_train.errors import UserError
from plast_train.run_folder import content_hash, sha256_of
from plast_train.tasks import m3exam, parallel_questions, vlmevalkit_table
from plast_train.tasks.benchmark import Benchmark, Format

# The first that recognises a path reads it; ENGLISH_ANSWERS takes what JSON lines LOCAL_ANSWERS leaves.
FORMATS: tuple[Format, ...] = (
    vlmevalkit_table.FORMAT,
    m3exam.FORMAT,
    parallel_questions.LOCAL_ANSWERS,
    parallel_questions.ENGLISH_ANSWERS,
)


def read_benchmarks(paths: Iterable[Path], image_root: Path | None = None) -> list[Benchmark]:
    """Every benchmark of the files, one for each language that a file holds, in order.

    `image_root` is the folder below which images lie that a file names; the file's own folder by default.

    Raises:
        UserError: with file, row, value and fix, the first thing that is wrong; a file of no known format;
            two files of one benchmark and language.
    """
    found: list[Benchmark] = []
    for path in paths:
        format_ = _format_of(path)
        if format_ is None:
            names = ", ".join(dict.fromkeys(known.files for known in FORMATS))
            raise UserError(f"{path}: unknown benchmark format; give {names}")
        found += format_.read(path, image_root or path.parent)
    seen: dict[tuple[str, str], Path] = {}
    for benchmark in found:
        other = seen.setdefault((benchmark.name, benchmark.language), benchmark.path)
        if other is not benchmark.path:
            raise UserError(f"{benchmark.path}: same benchmark and language as {other}; rename or remove one")
    return found


def benchmarks_of(config: EvaluateConfig) -> list[Benchmark]:
    """The benchmarks that a config names; see `read_benchmarks`."""
    root = config.image_root
    return read_benchmarks(map(Path, config.benchmarks), None if root is None else Path(root))


def read_benchmark(path: Path) -> Benchmark:
    """The one benchmark of a file that holds one language; see `read_benchmarks`."""
    (benchmark,) = read_benchmarks([path])
    return benchmark


def benchmark_hashes(config: EvaluateConfig) -> dict[str, str]:
    """By the name of file or folder: the same benchmark is the same wherever it lies. Files of one name in
    several folders, which hold other languages, are `NAME`, `NAME (2)`, … in the order of their hashes, so
    that neither folders nor order count. Stage records keep these: an evaluation is redone when one
    changes."""
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
    """SHA-256 of a benchmark's file or folder and of the images that it names. Contents, not times of
    change: benchmarks are small beside training data and are copied to other machines."""
    content, format_ = content_hash(path), _format_of(path)
    names = sorted(set(format_.image_names(path))) if format_ else []
    if not names:
        return content
    images = [(name, _image_hash(name, image_root or path.parent)) for name in names]
    return hashlib.sha256(json.dumps([content, images]).encode()).hexdigest()


def _image_hash(name: str, root: Path) -> str | None:
    try:
        return sha256_of(locate_image(name, root))
    except (ImageDefect, OSError):
        return None  # reading the benchmark reports the missing image


def _format_of(path: Path) -> Format | None:
    return next((known for known in FORMATS if known.recognises(path)), None)
