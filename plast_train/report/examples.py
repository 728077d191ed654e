"""The report's section of examples: questions whose reply became wrong by training as well as right."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from plast_train.config import EvaluateConfig
from plast_train.data.languages import ENGLISH, language_name
from plast_train.figures.page import Section, heading, paragraph, picture, said
from plast_train.report.accuracy import Result
from plast_train.run_folder import RunFolder
from plast_train.scoring.accuracies import BASE, TRAINED
from plast_train.scoring.records import Record, generated_right
from plast_train.tasks.registry import benchmarks_of

SHOWN = 6  # of each kind and benchmark
THUMBNAIL = 168  # pixels, twice what the page takes for it
Pair = tuple[Record, Record]
_KINDS = {
    "Right before training, wrong after": (True, False),
    "Wrong before training, right after": (False, True),
}


def examples_section(results: Sequence[Result], config: EvaluateConfig, run: RunFolder) -> Section:
    text = (
        f"Of each benchmark up to {SHOWN} questions of each kind, in turn from each language in the order of "
        "the file; nothing is chosen by hand. All replies are in evaluation/predictions."
    )
    images = _Images(config)
    parts = [_benchmark(result, run, images) for result in results]
    return Section("examples", "Examples that changed", paragraph(text) + "".join(parts))


def _benchmark(result: Result, run: RunFolder, images: _Images) -> str:
    pairs = {language: _pairs(run, result.name, language) for language in _ordered(result.cells)}
    english = {base["index"]: base["question"] for base, _ in pairs.get(ENGLISH, [])}
    parts = []
    for title, change in _KINDS.items():
        changed = {language: _changed(own, result.rule, change) for language, own in pairs.items()}
        count = sum(map(len, changed.values()))
        parts.append(heading(f"{result.name}. {title}: {count} of {sum(map(len, pairs.values()))} rows"))
        cards = [_card(pair, english, images) for pair in _in_turn(changed.values(), SHOWN)]
        parts.append(f'<div class="cards">{"".join(cards)}</div>' if cards else paragraph("None."))
    return "".join(parts)


def _ordered(languages: Mapping[str, Any]) -> list[str]:
    return sorted(languages, key=lambda language: (language != ENGLISH, language))


def _pairs(run: RunFolder, benchmark: str, language: str) -> list[Pair]:
    """Both models' records of each row."""
    path = run.evaluation / "predictions" / f"{benchmark}.{language}.jsonl"
    records: dict[str, dict[int, Record]] = defaultdict(dict)
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for record in map(json.loads, file):
                records[record["model"]][record["index"]] = record
    return [(base, records[TRAINED][index]) for index, base in records[BASE].items()]


def _changed(pairs: Sequence[Pair], rule: str, change: tuple[bool, bool]) -> list[Pair]:
    before, after = change
    return [
        (base, trained)
        for base, trained in pairs
        if generated_right(base, rule) == before and generated_right(trained, rule) == after
    ]


def _in_turn(groups: Any, most: int) -> Iterator[Pair]:
    """The first of each group, then the second, … until there are `most`."""
    queues = [iter(group) for group in groups]
    left = most
    while queues and left:
        for queue in list(queues):
            pair = next(queue, None)
            if pair is None:
                queues.remove(queue)
            elif left:
                left -= 1
                yield pair


def _card(pair: Pair, english: Mapping[int, str], images: _Images) -> str:
    base, trained = pair
    language, index = base["language"], base["index"]
    thumbnail = images.thumbnail(base["benchmark"], language, index)
    shown = picture(*thumbnail, f"Image of question {index}") if thumbnail else ""
    asked = f'<div class="asked">{said(base["question"], language, "p")}</div>'
    meant = english.get(index) if language != ENGLISH else None
    translated = f'<p class="english">{escape(meant)}</p>' if meant else ""
    where = f'<p class="where">{escape(language_name(language))}, question {index}</p>'
    replies = "".join(_reply(when, record) for when, record in (("before", base), ("after", trained)))
    return f'<div class="card">{shown}{where}{asked}{translated}{_answers(base)}{replies}</div>'


def _reply(when: str, record: Record) -> str:
    reply = said(record["prediction"], record["language"]) if record["prediction"] else "(nothing)"
    return f"<p>reply {when}: {reply}</p>"


def _answers(record: Record) -> str:
    """The options with the right one marked; of an open question the right answer."""
    language = record["language"]
    items = []
    for letter, text in (record["options"] or {"": record["answer"]}).items():
        right = ' class="right"' if letter in ("", record["answer"]) else ""
        label = f"<bdi>{escape(letter)}.</bdi> " if letter else ""  # a bdi does not decide the direction
        own = f'<span lang="{escape(language)}">{escape(text)}</span>'
        items.append(f'<li{right} dir="auto">{label}{own}</li>')
    return f"<ul>{''.join(items)}</ul>"


class _Images:
    """The questions' images, read from the benchmarks' files when one is first asked for."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config
        self._found: dict[tuple[str, str, int], bytes] | None = None

    def thumbnail(self, benchmark: str, language: str, index: int) -> tuple[bytes, str] | None:
        """An image file and its media type; None for a question without an image."""
        if self._found is None:
            self._found = {
                (own.name, own.language, item.index): item.image_bytes
                for own in benchmarks_of(self._config)
                for item in own.items
                if item.image_bytes is not None
            }
        content = self._found.get((benchmark, language, index))
        return None if content is None else _thumbnail(content)


def _thumbnail(content: bytes) -> tuple[bytes, str]:
    """A small image as PNG, lossless; a large one made small, as JPEG."""
    with Image.open(io.BytesIO(content)) as image:
        small = max(image.size) <= THUMBNAIL
        shown = image.convert("RGB")
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    if small:
        shown.save(file, "PNG", optimize=True)
    else:
        shown.save(file, "JPEG", quality=82)
    return file.getvalue(), "image/png" if small else "image/jpeg"
