"""What every benchmark is, whatever its file: `Benchmark`s of `Item`s, and the `Format` that reads them.

`registry.FORMATS` lists the formats. A new one is a module that makes a `Format`, and an entry there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from plast_train.data.images import IMAGE_FORMATS, ImageDefect, check_image, locate_image, to_rgb
from plast_train.data.languages import language_name
from plast_train.data.questions import HALF_PAIR, is_encodable
from plast_train.errors import UserError

_NAME = re.compile(r"(?P<name>.+)_(?P<language>[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)")
_NOT_LANGUAGES = ("dev", "val")  # splits at the end of public files' names that look like language codes


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
        return to_rgb(Image.open(io.BytesIO(self.image_bytes), formats=IMAGE_FORMATS))


@dataclass(frozen=True)
class Benchmark:
    """The items in one language of the file or folder at `path`. `name` is the file's without the language,
    `language` a BCP 47 code."""

    path: Path
    name: str
    language: str
    items: list[Item]
    format: Format


@dataclass(frozen=True)
class Format:
    """One benchmark format: all that the program knows about it.

    `files`: how its files are named, for messages. `recognises(path)`: whether a file or folder is of this
    format. `read(path, image_root)`: its benchmarks, one a language, every row checked; raises UserError with
    row, value and fix for the first defect. `image_names(path)`: the images that the file names below
    `image_root`, which are hashed with it; none where images are inside the file, or it cannot be read.
    `ask(item, language, localised)`: the prompt's text, without the model family's chat format;
    `localised` asks for the instruction in the benchmark's `language`. `match(item, reply)`: for each
    matching rule the option letter or answer that the reply names, or None; the rule that the benchmark is
    scored by first, except for multiple choice, where `evaluate.matching` chooses.
    """

    files: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Path], list[Benchmark]]
    image_names: Callable[[Path], Iterable[str]]
    ask: Callable[[Item, str, bool], str]
    match: Callable[[Item, str], dict[str, str | None]]


def name_and_language(path: Path) -> tuple[str, str]:
    """`mmbench_dev_cn.tsv` → `mmbench_dev`, `zh`: public files call Chinese `cn`. A folder has no suffix.

    Raises UserError for a name that does not end in a language.
    """
    match = _NAME.fullmatch(path.name if path.is_dir() else path.stem)
    primary, *rest = (match["language"] if match else "").split("-")
    primary = primary.lower()
    if not match or primary in _NOT_LANGUAGES:
        raise UserError(
            f"{path}: the name does not end in a language; call it NAME_LANGUAGE{path.suffix} (_en, _cn, …)"
        )
    language = "-".join(["zh" if primary == "cn" else primary, *rest])
    check_language(str(path), language)
    return match["name"], language


def check_language(where: str, language: str) -> None:
    """Raises UserError, beginning with `where`, for an unknown language code."""
    try:
        language_name(language)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_characters(where: str, item: Item) -> None:
    """Raises UserError for a text that can be neither written to a file nor tokenized."""
    texts = (item.question, item.hint, *item.options.values(), item.answer, *item.answers)
    for text in (*texts, item.category, item.l2_category):
        if not is_encodable(text):
            raise UserError(f"{where}: the text {text!r:.60} {HALF_PAIR}")


def check_choice(
    where: str, question: str, letters: Sequence[str], options: Mapping[str, str], answer: str
) -> None:
    """Raises UserError for an empty question, fewer than two options, an answer that is none of them."""
    if not question.strip():
        raise UserError(f"{where}: the question is empty; write it or remove the row")
    if len(options) < 2:
        raise UserError(
            f"{where}: fewer than two of the options {', '.join(letters)} have "
            "a text; fill in the others or remove the row"
        )
    if answer.strip() not in options:
        raise UserError(
            f"{where}: answer {answer.strip()!r} is not among the options "
            f"{', '.join(options)}; name one of them, or fill its cell"
        )


def image_of_file(where: str, name: str, root: Path) -> bytes:
    """The file `name` below `root`. Raises UserError for one that is missing, outside, or no image."""
    try:
        return _checked_file(name, root)
    except ImageDefect as defect:
        raise UserError(f"{where}: {defect}") from None


@lru_cache(maxsize=4096)  # several questions about an image, and several languages, share one object
def _checked_file(name: str, root: Path) -> bytes:
    path = locate_image(name, root)
    check_image(path)
    return path.read_bytes()
