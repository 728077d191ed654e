"""Parallel questions with answers, JSON lines: xGQA, MaXM, and any of that form.

`{"id", "image": path or null, "questions": {language: text}, "answer": text}` has one English answer for all
languages, as xGQA has. `"answers": {language: [text, …]}` instead has the right answers in each language, as
MaXM has. A file holds records of one of these forms, each a format, and is one benchmark in each language of
its questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plast_train.data.readers import Defect, read_entries
from plast_train.errors import UserError
from plast_train.tasks.benchmark import (
    Benchmark,
    Format,
    Item,
    check_characters,
    check_language,
    image_of_file,
)
from plast_train.tasks.matching import match_english_answer, match_local_answer
from plast_train.tasks.prompts import ask_english_answer, ask_local_answer


def _read(path: Path, image_root: Path) -> list[Benchmark]:
    by_language: dict[str, list[Item]] = {}
    first_of: dict[bool, str] = {}  # whether a record has an answer in each language → the first such record
    ids: dict[str, str] = {}
    for index, found in enumerate(read_entries(path)):
        if isinstance(found, Defect):
            raise UserError(str(found))
        where, entry = found
        first_of.setdefault("answers" in entry, where)
        if len(first_of) > 1:
            raise UserError(
                f"{where}: 'answer' and 'answers' in one file (see {', '.join(first_of.values())}); split it"
            )
        name = str(entry.get("id", index))
        if name in ids:
            raise UserError(f"{where}: id {name!r} is already that of {ids[name]}; make ids unique")
        ids[name] = where
        for language, item in _items(where, index, entry, image_root):
            by_language.setdefault(language, []).append(item)
    if not by_language:
        raise UserError(f"{path}: no records; add questions or remove the file")
    format_ = LOCAL_ANSWERS if True in first_of else ENGLISH_ANSWERS
    return [Benchmark(path, path.stem, language, items, format_) for language, items in by_language.items()]


def _items(where: str, index: int, entry: dict[str, Any], image_root: Path) -> Iterator[tuple[str, Item]]:
    """One item for each language of the record."""
    questions, image = entry.get("questions"), entry.get("image")
    if not isinstance(questions, dict) or not questions:
        raise UserError(f"{where}: 'questions' does not map language codes to texts; write {{'en': '…', …}}")
    if image is not None and not isinstance(image, str):
        raise UserError(f"{where}: 'image' is {image!r:.40}; the models evaluated here take one path or null")
    content = None if image is None else image_of_file(where, image, image_root)
    for language, question in questions.items():
        check_language(where, language)
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{where}: the question in '{language}' is empty; write it or take it out")
        answers = _answers(where, entry, language)
        item = Item(
            index=index,
            question=question,
            hint="",
            options={},
            answer=answers[0],
            category=str(entry.get("category") or ""),
            l2_category="",
            image_bytes=content,
            group=None,
            answers=answers,
        )
        check_characters(where, item)
        yield language, item


def _answers(where: str, entry: dict[str, Any], language: str) -> tuple[str, ...]:
    found: Any = entry.get("answer")
    form = "'answer': '…'"
    if "answers" in entry:
        form = f"'answers': {{'{language}': ['…', …]}}"
        found = entry["answers"].get(language) if isinstance(entry["answers"], dict) else None
    else:
        found = [str(found) if isinstance(found, int | float) else found]
    if not isinstance(found, list) or not found or not all(isinstance(x, str) and x.strip() for x in found):
        raise UserError(f"{where}: no answer to the question in '{language}' ({found!r:.60}); write {form}")
    return tuple(found)


def _image_names(path: Path) -> Iterator[str]:
    for found in read_entries(path):
        if not isinstance(found, Defect) and isinstance(found[1].get("image"), str):
            yield found[1]["image"]


def _has_local_answers(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    first = next((found for found in read_entries(path) if not isinstance(found, Defect)), None)
    return first is not None and "answers" in first[1]


def _is_json_lines(path: Path) -> bool:
    return path.suffix == ".jsonl"


_FILES = "NAME.jsonl (parallel questions with answers)"
LOCAL_ANSWERS = Format(
    files=_FILES,
    recognises=_has_local_answers,
    read=_read,
    image_names=_image_names,
    ask=ask_local_answer,
    match=match_local_answer,
)
ENGLISH_ANSWERS = Format(
    files=_FILES,
    recognises=_is_json_lines,
    read=_read,
    image_names=_image_names,
    ask=ask_english_answer,
    match=match_english_answer,
)
