"""Parallel questions: read from every format, checked, in file order.

Every defect is found here, before a rank starts, and named with file, line, id and remedy. Imports no torch.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from plast_train.config import DataConfig
from plast_train.data.images import CheckedImage, ImageDefect, check_images
from plast_train.data.languages import language_name
from plast_train.data.readers import Defect, RawRecord, read_conversations, read_parallel
from plast_train.errors import UserError

log = logging.getLogger(__name__)

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image file

# JSON can escape half a surrogate pair, which can be neither written to a file nor tokenized.
HALF_PAIR = "has half a surrogate pair, which is not a character; remove it"
_SHOWN = 10  # defects that a message lists
_LANGUAGE_ENTRY = re.compile(r"(?P<language>[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)=(?P<path>.+)")


@dataclass(frozen=True)
class Record:
    """The same question in English and other configured languages, about one image or none. All languages
    are there (`complete`) in what is probed; a record that lacks some is trained on in those it has.

    `image` is an absolute path that has been checked, `image_sha256` of its content: a replaced picture makes
    another record, so that what was made from it is made again. `where` says file and line, for messages;
    `box` is the object's that the question asks about.
    """

    id: str
    questions: dict[str, str]
    image: str | None
    answer: str | None
    where: str
    box: Box | None = None
    image_sha256: str | None = None


def is_encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8; see `HALF_PAIR`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def complete(records: Sequence[Record], languages: Sequence[str]) -> list[int]:
    """The numbers of the records that have a question in every one of the languages."""
    return [n for n, record in enumerate(records) if record.questions.keys() >= set(languages)]


def read_records(config: DataConfig) -> list[Record]:
    """The usable records of `data.questions`, in file order, questions in the order of `data.languages`.

    An entry of `data.questions` is `X.jsonl` (parallel questions); `LANG=X.json` (a LLaVA instruct
    list, all such entries paired by id); or a Hugging Face data set: X.parquet, a folder, `hf:NAME[@SPLIT]`.
    Languages that are not configured are passed over.

    Raises:
        UserError: a file cannot be read, a language is unknown, no record has a question in every language,
            or more than `data.max_bad_fraction` of the records have defects. Fewer are left out with a
            warning.
    """
    for language in config.languages:
        try:
            language_name(language)
        except UserError as error:
            raise UserError(f"data.languages: {error}") from None
    found = list(_read(config))
    if not found:
        raise UserError(f"data.questions: no record in {', '.join(config.questions)}")
    raw_records = [raw for raw in found if isinstance(raw, RawRecord)]
    images = check_images((raw.image, raw.root) for raw in raw_records if isinstance(raw.image, str))
    ids: dict[str, str] = {}  # id → where it was first
    records: list[Record] = []
    defects: list[Defect] = []
    for raw in found:
        if isinstance(raw, Defect):
            defects.append(raw)
            continue
        image = images[raw.image, raw.root] if isinstance(raw.image, str) else raw.image
        problems = [*_id_problems(raw, ids), *_question_problems(raw, config.languages)]
        problems += [*_image_problems(image), *_answer_problems(raw.answer), *_box_problems(raw.box, image)]
        defects += [Defect(raw.where, None if raw.id is None else str(raw.id), p) for p in problems]
        if not problems:
            there = [code for code in config.languages if raw.questions.get(code) is not None]
            questions = {language: raw.questions[language] for language in there}
            path, content = None, None
            if isinstance(image, CheckedImage):
                path, content = str(image.path), image.sha256
            answer = None if raw.answer is None else str(raw.answer)
            box = None if raw.box is None else (raw.box[0], raw.box[1], raw.box[2], raw.box[3])
            records.append(Record(str(raw.id), questions, path, answer, raw.where, box, content))
    refuse_or_leave_out(defects, len(found), config.max_bad_fraction)
    _check_languages(records, config.languages)
    _warn_of_untranslated(records)
    return records


def refuse_or_leave_out(defects: Sequence[Defect], records: int, max_bad_fraction: float) -> None:
    """One warning that lists the defects, if few enough of the `records` have any.

    Raises:
        UserError: more than `max_bad_fraction` of them have.
    """
    bad = len({defect.where for defect in defects})
    if not bad:
        return
    lines = [f"  {defect}" for defect in defects[:_SHOWN]]
    if len(defects) > _SHOWN:
        lines.append(f"  … and {len(defects) - _SHOWN} more")
    listed = "\n".join(lines)
    share = f"{bad} of {records} records cannot be used"
    if bad > max_bad_fraction * records:
        raise UserError(
            f"{share}:\n{listed}\nMend them, or leave them out with data.max_bad_fraction "
            f"(now {max_bad_fraction:g}; these are {bad / records:.4g})"
        )
    log.warning("%s and are left out; fix them to use them:\n%s", share, listed)
    for defect in defects[_SHOWN:]:
        log.info("left out: %s", defect)


def _read(config: DataConfig) -> Iterator[RawRecord | Defect]:
    root = None if config.image_root is None else Path(config.image_root).expanduser()
    if root is not None and not root.is_dir():
        raise UserError(f"data.image_root: '{root}' is not a folder; name the one that the images are below")
    twice = [entry for entry, count in Counter(config.questions).items() if count > 1]
    if twice:
        raise UserError(f"data.questions: '{twice[0]}' is there twice; name it once")
    lists: list[tuple[str, Path]] = []
    for entry in config.questions:
        if match := _LANGUAGE_ENTRY.fullmatch(entry):
            _check_listed(entry, match["language"], lists)
            lists.append((match["language"], Path(match["path"]).expanduser()))
    columns_used = False
    lists_read = False
    for entry in config.questions:
        path = Path(entry).expanduser()
        if _LANGUAGE_ENTRY.fullmatch(entry):
            if not lists_read:
                yield from read_conversations(lists, root)
            lists_read = True
        elif entry.startswith("hf:") or path.suffix == ".parquet" or path.is_dir():
            from plast_train.data.readers_datasets import read_dataset  # slow to import, seldom needed

            yield from read_dataset(entry if entry.startswith("hf:") else str(path), config, root)
            columns_used = True
        elif path.suffix == ".jsonl":
            yield from read_parallel(path, root)
        else:
            raise UserError(
                f"data.questions: '{entry}' is not there or of no known kind; give X.jsonl, LANG=X.json "
                "(a LLaVA list), X.parquet, the folder of a data set, or hf:NAME"
            )
    if config.columns and not columns_used:
        raise UserError("data.columns: no entry of data.questions is a Hugging Face data set; remove it")


def _check_listed(entry: str, language: str, lists: list[tuple[str, Path]]) -> None:
    try:
        language_name(language)
    except UserError as error:
        raise UserError(f"data.questions: {entry}: {error}") from None
    if language in dict(lists):
        raise UserError(f"data.questions: {entry}: '{language}' has a list already; join the two files")


def _id_problems(raw: RawRecord, seen: dict[str, str]) -> Iterator[str]:
    if raw.id is None:
        yield "no 'id'; give each record its own"
    elif isinstance(raw.id, bool) or not isinstance(raw.id, str | int) or raw.id == "":
        yield f"'id' is {raw.id!r}; make it a text"
    elif not is_encodable(str(raw.id)):
        yield f"the id {HALF_PAIR}"
    elif str(raw.id) in seen:
        yield f"the id is also at {seen[str(raw.id)]}; make ids unique"
    else:
        seen[str(raw.id)] = raw.where


def _question_problems(raw: RawRecord, languages: Sequence[str]) -> Iterator[str]:
    if not isinstance(raw.questions, dict):
        yield "'questions' does not map language codes to texts; write {'en': '…', …}"
        return
    for language in languages:
        text = raw.questions.get(language)
        if text is None:
            if language == "en":
                yield f"no English question (there is: {_listed(raw.questions)}); add it"
        elif not isinstance(text, str):
            yield f"the question in '{language}' is not a text but {text!r:.40}; write one"
        elif not text.strip():
            yield f"the question in '{language}' is empty; write it"
        elif not is_encodable(text):
            yield f"the question in '{language}' {HALF_PAIR}"
    others = [language for language in languages if language != "en"]
    if others and all(raw.questions.get(language) is None for language in others):
        yield (
            f"no question in {' or '.join(others)} (there is: {_listed(raw.questions)}); add one, or give "
            "data.languages the codes that the record has"
        )


def _listed(questions: dict[Any, Any]) -> str:
    return ", ".join(map(str, questions)) or "none"


def _image_problems(image: Any) -> Iterator[str]:
    """`image` is None, a checked image, or what is wrong with it."""
    if isinstance(image, ImageDefect):
        yield str(image)
    elif image is not None and not isinstance(image, CheckedImage):
        yield f"'image' is {image!r:.40}; write a path or null"
    elif image is not None and not is_encodable(str(image.path)):
        yield f"the name of image {str(image.path)!r} is not UTF-8; rename the file"


def _answer_problems(answer: Any) -> Iterator[str]:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        yield f"'answer' is {answer!r:.40}; write a text or leave it out"
    elif isinstance(answer, str) and not is_encodable(answer):
        yield f"the answer {HALF_PAIR}"


def _box_problems(box: Any, image: Any) -> Iterator[str]:
    """`image` is None, a checked image, or what is wrong with it."""
    if box is None:
        return
    numbers = isinstance(box, list) and all(type(x) in (int, float) and math.isfinite(x) for x in box)
    if not numbers or len(box) != 4:
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
            yield f"'box' {box} leaves its image of {width}x{height} pixels; fix it"


def _check_languages(records: Sequence[Record], languages: Sequence[str]) -> None:
    """Doubtful: records that lack a language. Wrong: a language that none has, or no complete record."""
    missing = Counter(code for record in records for code in languages if code not in record.questions)
    absent = [code for code, count in missing.items() if count == len(records)]
    if absent:
        there = _listed({code: None for record in records for code in record.questions})
        raise UserError(
            f"data.languages: no record has a question in '{absent[0]}' (there is: {there}); add them to the "
            f"files, or take '{absent[0]}' out"
        )
    if not missing:
        return
    lacking = [record for record in records if len(record.questions) < len(languages)]
    counts = ", ".join(f"{code} {n}" for code, n in missing.items())
    told = f"{len(lacking)} of {len(records)} records lack questions ({counts}), the first: " + "; ".join(
        f"{record.where}, id {record.id!r}" for record in lacking[:3]
    )
    if len(lacking) == len(records):
        raise UserError(
            f"data.questions: {told}. Probing needs records with every language of data.languages"
        )
    log.warning(
        "%s. They are trained on in the languages they have and not probed; add the questions to probe them.",
        told,
    )


def _warn_of_untranslated(records: Sequence[Record]) -> None:
    """Doubtful, not wrong: a question that is English in another language, too, teaches copying."""
    same = [
        (language, record)
        for record in records
        for language, text in record.questions.items()
        if language != "en" and text == record.questions["en"]
    ]
    if same:
        counts = ", ".join(f"{code} {n}" for code, n in Counter(code for code, _ in same).items())
        shown = "; ".join(f"{record.where}, id {record.id!r} ({code})" for code, record in same[:3])
        log.warning(
            "%d questions are the same as in English (%s), the first: %s. Translate or remove them if they "
            "are no proper names.", len(same), counts, shown,
        )  # fmt: skip
