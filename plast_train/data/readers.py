"""Question files as they are: JSON lines of parallel questions, and LLaVA instruct lists, one a language.

Readers only take a file apart; whether what they find can be used is `questions.py`'s to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from plast_train.errors import UserError


@dataclass(frozen=True)
class RawRecord:
    """One record as its file has it, nothing checked; `image` is meant below the folder `root`."""

    where: str
    id: Any
    questions: Any
    image: Any
    answer: Any
    root: Path
    box: Any = None


@dataclass(frozen=True)
class Defect:
    """What is wrong with the record at `where` (file and line) and how to fix it."""

    where: str
    id: str | None
    problem: str

    def __str__(self) -> str:
        return f"{self.where}{'' if self.id is None else f', id {self.id!r}'}: {self.problem}"


def read_parallel(path: Path, root: Path | None) -> Iterator[RawRecord | Defect]:
    """Parallel questions, JSON lines: `{"id", "image", "questions": {code: text}, "answer", "box"}`."""
    for found in read_entries(path):
        if isinstance(found, Defect):
            yield found
            continue
        where, entry = found
        id_, questions, image, answer = map(entry.get, ("id", "questions", "image", "answer"))
        yield RawRecord(where, id_, questions, image, answer, root or path.parent, entry.get("box"))


def read_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]] | Defect]:
    """The JSON object of each line that is not empty, and where it stands."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield Defect(where, None, f"{_what(error)}; fix the line or remove it")
                continue
            if isinstance(entry, dict):
                yield where, entry
            else:
                yield Defect(where, None, "not a JSON object; write {'id': …, 'questions': {…}}")


@dataclass(frozen=True)
class _Conversation:
    """One element of a LLaVA list: its first question, and the English one where the element knows it."""

    where: str
    language: str
    id: Any
    question: str | None
    english: str | None
    image: Any
    root: Path


def read_conversations(files: Sequence[tuple[str, Path]], root: Path | None) -> Iterator[RawRecord | Defect]:
    """LLaVA instruct lists, one file a language, paired by id: `[{"id", "image", "conversations": [{"from":
    "human", "value": …}, …]}, …]`. A conversation's first human turn is the question, `<image>` removed.

    PALO's files carry the English beside the translation (`english_conversations`), so they need no English
    file. LLaVA gives several conversations about one image the same id; they are told apart by their English
    question, where all files know it, and numbered `id#2`, `id#3`, ….
    """
    conversations: list[_Conversation] = []
    for language, path in files:
        for found in _conversations(language, path, root or path.parent):
            if isinstance(found, Defect):
                yield found
            else:
                conversations.append(found)
    groups: dict[tuple[str, str], list[_Conversation]] = {}
    same_id: dict[str, list[list[_Conversation]]] = {}
    for one in conversations:
        if one.english is not None:
            key = (str(one.id), one.english)
            if key not in groups:
                groups[key] = []
                same_id.setdefault(str(one.id), []).append(groups[key])
            groups[key].append(one)
    for one in conversations:
        if one.english is None:
            found_groups = same_id.get(str(one.id), [])
            if len(found_groups) == 1:
                found_groups[0].append(one)
            elif found_groups:
                yield _defect(one, "several English conversations have this id; make ids unique")
            else:
                yield _defect(one, "no English conversation has this id; add it to the file given as en=")
    for named in same_id.values():
        for number, group in enumerate(named, start=1):
            yield _paired(group, number)


def _paired(group: list[_Conversation], number: int) -> RawRecord | Defect:
    """The record of conversations that translate each other."""
    first = next((one for one in group if one.language == "en"), group[0])
    questions: dict[str, str | None] = {"en": first.english}
    for one in group:
        if one.language in questions and one is not first:
            problem = f"its question is there twice, here and at {first.where}; remove one"
            if one.language != "en":
                problem += ", or split the file by language if it mixes several"
            return _defect(one, problem)
        questions[one.language] = one.question
    with_image = next((one for one in group if one.image is not None), first)
    if any(one.image not in (None, with_image.image) for one in group):
        return _defect(first, "its translations name different images; make them one")
    id_ = first.id if number == 1 else f"{first.id}#{number}"
    return RawRecord(first.where, id_, questions, with_image.image, None, with_image.root)


def _conversations(language: str, path: Path, root: Path) -> Iterator[_Conversation | Defect]:
    for where, entry in _list_entries(path):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            yield Defect(where, None, "no list 'conversations'; give a LLaVA instruct list")
            continue
        one = _Conversation(
            where, language, entry.get("id"), _question(turns), None, entry.get("image"), root
        )
        if one.id is None:
            yield Defect(where, None, "no 'id'; add the one its translations have")
        elif one.question is None:
            yield _defect(one, "no human turn with text; add one or remove the conversation")
        elif language == "en":
            yield replace(one, english=one.question)
        else:
            yield replace(one, english=_question(entry.get("english_conversations")))


def _question(turns: Any) -> str | None:
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") == "human" and isinstance(turn.get("value"), str):
            text: str = turn["value"].replace("<image>", "").strip()
            return text
    return None


def _list_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Each element of a JSON list and where it stands, element by element so that lines can be told."""
    with _open(path) as file:
        try:
            text = file.read().decode("utf-8-sig")
        except ValueError as error:
            raise UserError(f"{path}: {_what(error)}; give a LLaVA instruct list") from None
    decoder = json.JSONDecoder()
    at, line, number, expected = _skip(text, 0), 1, 0, "["
    line += text.count("\n", 0, at)
    while text[at : at + 1] == expected:
        start = _skip(text, at + 1)
        line += text.count("\n", at, start)
        if number == 0 and text[start : start + 1] == "]":
            return
        number, expected = number + 1, ","
        try:
            entry, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)  # of the text as a whole, not of where the entry starts
            raise UserError(f"{path}, line {line}, entry {number}: {_what(error)}; fix the file") from None
        yield f"{path}, line {line}, entry {number}", entry
        at = _skip(text, end)
        line += text.count("\n", start, at)
    if number == 0 or text[at : at + 1] != "]":
        problem = "the list ends without ']'" if number else "not a JSON list"
        raise UserError(f"{path}, line {line}: {problem}; give a whole LLaVA instruct list")


def _skip(text: str, at: int) -> int:
    """The index of the first character from `at` that is not JSON white space."""
    while text[at : at + 1] and text[at] in " \t\r\n":
        at += 1
    return at


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see data.questions") from None


def _what(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON at column {error.colno} ({error.msg})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start + 1}"
    return f"invalid JSON ({error or 'nested too deeply'})"


def _defect(one: _Conversation, problem: str) -> Defect:
    return Defect(one.where, str(one.id), problem)
