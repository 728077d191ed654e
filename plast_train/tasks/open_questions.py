"""Parallel questions with answers, JSON lines: xGQA, MaXM, and any of that form.

`{"id", "image": path or null, "questions": {language: text}, "answer": text}` has one English answer for all
languages, as xGQA has. `"answers": {language: [text, …]}` instead has the right answers in each language, as
MaXM has. A file holds records of one of these forms, and is one benchmark in each language of its questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plast_train.data.languages import language_name
from plast_train.data.readers import Defect, read_entries
from plast_train.errors import UserError
from plast_train.tasks.benchmarks import Benchmark, Item, Task, check_characters
from plast_train.tasks.item_images import image_of_file


def read_open_questions(path: Path, image_root: Path) -> list[Benchmark]:
    """Raises UserError, with line, value and mend, for the first thing that is wrong with the file."""
    by_language: dict[str, list[Item]] = {}
    tasks: dict[Task, str] = {}
    ids: dict[str, str] = {}
    for index, (where, entry) in enumerate(_entries(path)):
        task: Task = "answer" if "answers" in entry else "english answer"
        tasks.setdefault(task, where)
        if len(tasks) > 1:
            raise UserError(
                f"{where}: 'answer' and 'answers' in one file (see {', '.join(tasks.values())}); split it"
            )
        name = str(entry.get("id", index))
        if name in ids:
            raise UserError(f"{where}: id {name!r} is already that of {ids[name]}; make ids unique")
        ids[name] = where
        for language, item in _items(where, index, entry, task, image_root):
            by_language.setdefault(language, []).append(item)
    if not by_language:
        raise UserError(f"{path}: no records; add questions or remove the file")
    (task,) = tasks
    return [Benchmark(path, path.stem, language, items, task) for language, items in by_language.items()]


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for found in read_entries(path):
        if isinstance(found, Defect):
            raise UserError(str(found))
        yield found


def _items(
    where: str, index: int, entry: dict[str, Any], task: Task, image_root: Path
) -> Iterator[tuple[str, Item]]:
    """One item for each language of the record."""
    questions, image = entry.get("questions"), entry.get("image")
    if not isinstance(questions, dict) or not questions:
        raise UserError(f"{where}: 'questions' does not map language codes to texts; write {{'en': '…', …}}")
    if image is not None and not isinstance(image, str):
        raise UserError(f"{where}: 'image' is {image!r:.40}; the models evaluated here take one path or null")
    content = None if image is None else image_of_file(where, image, image_root)
    for language, question in questions.items():
        try:
            language_name(language)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{where}: the question in '{language}' is empty; write it or take it out")
        answers = _answers(where, entry, task, language)
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


def _answers(where: str, entry: dict[str, Any], task: Task, language: str) -> tuple[str, ...]:
    found: Any = entry.get("answer")
    if task == "english answer":
        found = [str(found) if isinstance(found, int | float) else found]
    else:
        found = entry["answers"].get(language) if isinstance(entry["answers"], dict) else None
    if not isinstance(found, list) or not found or not all(isinstance(x, str) and x.strip() for x in found):
        form = "'answer': '…'" if task == "english answer" else f"'answers': {{'{language}': ['…', …]}}"
        raise UserError(f"{where}: no answer to the question in '{language}' ({found!r:.60}); write {form}")
    return tuple(found)
