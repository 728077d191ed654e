"""M3Exam's multiple-choice lists (arXiv 2306.05179): `[{"question_text", "background_description": […],
"options": ["(1) …", …], "answer_text": "2", "subject_category", …}, …]`.

The texts name an image as `(image)[image-7.jpg]`, a file beside the list or below `evaluate.image_root`.
The models here take one image, so a question with several is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from plast_train.errors import UserError
from plast_train.tasks.benchmark import (
    Benchmark,
    Format,
    Item,
    check_characters,
    check_choice,
    image_of_file,
    name_and_language,
)
from plast_train.tasks.matching import match_choice
from plast_train.tasks.prompts import ask_choice

_IMAGE = re.compile(r"\(image\)\[([^\]]*)\]")
# An option's own label: `(1) …`, `A. …`, `(B) …`.
_LABEL = re.compile(r"\s*(?:\((?P<round>\w{1,2})\)|(?P<dot>\w{1,2})[.)])\s*(?P<text>.*)", re.DOTALL)
_FIELDS = {"question_text": str, "options": list, "answer_text": str}


def _read(path: Path, image_root: Path) -> list[Benchmark]:
    name, language = name_and_language(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); give a whole M3Exam list") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: not a list of questions; give a whole M3Exam list")
    items = [
        _item(f"{path}, entry {number}", number, entry, image_root) for number, entry in enumerate(entries)
    ]
    return [Benchmark(path, name, language, items, FORMAT)]


def _item(where: str, number: int, entry: Any, image_root: Path) -> Item:
    for field, kind in _FIELDS.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
            raise UserError(f"{where}: no '{field}' ({kind.__name__}); give M3Exam's {', '.join(_FIELDS)}")
    background = entry.get("background_description") or []
    hint = "\n".join([background] if isinstance(background, str) else map(str, background)).strip()
    question, answer = entry["question_text"], entry["answer_text"]
    labelled = [_labelled(str(option)) for option in entry["options"] if option != "nan"]
    images = [name for text in (hint, question, *(t for _, t in labelled)) for name in _IMAGE.findall(text)]
    if len(images) > 1:
        raise UserError(
            f"{where}: {len(images)} images ({', '.join(images)[:80]}); the models evaluated here take one, "
            "so take the entry out"
        )
    lettered = dict(zip(ascii_uppercase, labelled, strict=False))
    options = {letter: _without_image(text) for letter, (_, text) in lettered.items()}
    filled = {letter: text for letter, text in options.items() if text}
    right = next((letter for letter, (label, _) in lettered.items() if label == answer), answer)
    question = _without_image(question)
    check_choice(where, question, list(options), filled, right)
    item = Item(
        index=number,
        question=question,
        hint=_without_image(hint),
        options=filled,
        answer=right,
        category=str(entry.get("subject_category") or ""),
        l2_category=str(entry.get("subject") or ""),
        image_bytes=image_of_file(where, images[0], image_root) if images else None,
        group=None,
    )
    check_characters(where, item)
    return item


def _labelled(option: str) -> tuple[str, str]:
    """An option's label and its text; without a label the label is empty."""
    match = _LABEL.fullmatch(option)
    return (match["round"] or match["dot"], match["text"].strip()) if match else ("", option.strip())


def _without_image(text: str) -> str:
    return _IMAGE.sub("", text).strip()


def _image_names(path: Path) -> Iterator[str]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield from _IMAGE.findall(value)
        elif isinstance(value, list | dict):
            waiting += value.values() if isinstance(value, dict) else value


def _recognises(path: Path) -> bool:
    return path.suffix == ".json"


FORMAT = Format(
    files="NAME_LANGUAGE.json (an M3Exam list)",
    recognises=_recognises,
    read=_read,
    image_names=_image_names,
    ask=ask_choice,
    match=match_choice,
)
