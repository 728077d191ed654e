"""Benchmarks behind one small interface: whatever a file's format, it becomes `Benchmark`s of `Item`s, read
whole and checked before anything runs.

Multiple choice: VLMEvalKit-style tables (TSV, Parquet, a Hugging Face folder), CVQA's tables, M3Exam's JSON
lists. Open questions: parallel questions with answers, JSON lines, as xGQA and MaXM are given.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from plast_train.config import EvaluateConfig
from plast_train.data.characters import HALF_PAIR, is_encodable
from plast_train.data.images import FORMATS, to_rgb
from plast_train.data.languages import language_name
from plast_train.errors import UserError

# What is asked for: an option's letter, an English answer (xGQA), or an answer in the question's language
# (MaXM).
Task = Literal["choice", "english answer", "answer"]

KINDS = (
    "NAME_LANGUAGE.tsv, NAME_LANGUAGE.parquet or a Hugging Face folder NAME_LANGUAGE (VLMEvalKit's or CVQA's "
    "columns), NAME_LANGUAGE.json (an M3Exam list), or NAME.jsonl (parallel questions with answers)"
)
_NAME = re.compile(r"(?P<name>.+)_(?P<language>[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)")
_NOT_LANGUAGES = ("dev", "val")  # splits that end public file names, and look like language codes


@dataclass(frozen=True)
class Item:
    """One question, about one image or none.

    Multiple choice: `options` by letter, `answer` the right one's letter. Open questions: `options` is
    empty, `answers` are all texts that count as right and `answer` is the first of them. `group` is the
    index of the question whose circular row this is (None in a plain file); `pair` the smaller index of the
    two yes/no questions that belong together, where there is another.
    """

    index: int
    question: str
    hint: str
    options: dict[str, str]
    answer: str
    category: str
    l2_category: str
    image_bytes: bytes | None
    group: int | None
    pair: int | None = None
    answers: tuple[str, ...] = ()

    @property
    def image(self) -> Image.Image:
        """The image, RGB, decoded at every call: a benchmark's decoded images may not fit in memory."""
        assert self.image_bytes is not None, "the question has no image"
        return to_rgb(Image.open(io.BytesIO(self.image_bytes), formats=FORMATS))


@dataclass(frozen=True)
class Benchmark:
    """The items in one language of the file or folder at `path`. `name` is the file's without the language,
    `language` a BCP 47 code."""

    path: Path
    name: str
    language: str
    items: list[Item]
    task: Task = "choice"


def read_benchmarks(paths: Iterable[Path], image_root: Path | None = None) -> list[Benchmark]:
    """Every benchmark of the files, one for each language that a file holds, in order.

    `image_root` is the folder below which images lie that a file names; the file's own folder by default.

    Raises:
        UserError: with file, row, value and mend, the first thing that is wrong; two files of one benchmark
            and language.
    """
    found = [benchmark for path in paths for benchmark in _read(path, image_root or path.parent)]
    seen: dict[tuple[str, str], Path] = {}
    for benchmark in found:
        other = seen.setdefault((benchmark.name, benchmark.language), benchmark.path)
        if other is not benchmark.path:
            raise UserError(f"{benchmark.path}: same benchmark and language as {other}; rename or remove one")
    return found


def benchmarks_of(config: EvaluateConfig) -> list[Benchmark]:
    """Those that a config names; as `read_benchmarks`."""
    root = config.image_root
    return read_benchmarks(map(Path, config.benchmarks), None if root is None else Path(root))


def read_benchmark(path: Path) -> Benchmark:
    """The one benchmark of a file that holds one language; as `read_benchmarks`."""
    (benchmark,) = read_benchmarks([path])
    return benchmark


def check_characters(where: str, item: Item) -> None:
    """Raises UserError for a text that no file and no tokenizer takes."""
    texts = (item.question, item.hint, *item.options.values(), item.answer, *item.answers)
    for text in (*texts, item.category, item.l2_category):
        if not is_encodable(text):
            raise UserError(f"{where}: the text {text!r:.60} {HALF_PAIR}")


def _read(path: Path, image_root: Path) -> list[Benchmark]:
    from plast_train.tasks.exams import read_exam
    from plast_train.tasks.multiple_choice import read_multiple_choice
    from plast_train.tasks.open_questions import read_open_questions
    from plast_train.tasks.tables import read_table, read_tsv

    if path.suffix == ".jsonl":
        return read_open_questions(path, image_root)
    if path.is_dir():
        name, language = name_and_language(path, path.name)
    elif path.suffix in (".tsv", ".parquet", ".json"):
        name, language = name_and_language(path, path.stem)
    else:
        raise UserError(f"{path}: of no known benchmark format; give {KINDS}")
    if path.suffix == ".json":
        items = read_exam(path, image_root)
    else:
        items = read_multiple_choice(path, read_tsv(path) if path.suffix == ".tsv" else read_table(path))
    return [Benchmark(path, name, language, items)]


def name_and_language(path: Path, stem: str) -> tuple[str, str]:
    """`mmbench_dev_cn` → `mmbench_dev`, `zh`: public files call Chinese `cn`.

    Raises UserError, naming `path`, for a stem that does not end in a language.
    """
    match = _NAME.fullmatch(stem)
    language = match["language"] if match else ""
    primary, *rest = language.split("-")
    primary = primary.lower()
    if not match or primary in _NOT_LANGUAGES:
        raise UserError(
            f"{path}: the name does not end in a language; call it NAME_LANGUAGE{path.suffix} (_en, _cn, …)"
        )
    language = "-".join(["zh" if primary == "cn" else primary, *rest])
    try:
        language_name(language)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return match["name"], language
