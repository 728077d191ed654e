"""The report's section of examples: questions whose reply training made wrong, or right."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from typing import Any

from PIL import Image

from plast_train.config import EvaluateConfig
from plast_train.data.languages import ENGLISH, english_first, language_name
from plast_train.figures.page import Section, data_uri
from plast_train.report.results import Result
from plast_train.run_folder import RunFolder
from plast_train.scoring.accuracies import BASE, TRAINED
from plast_train.scoring.records import Record, generated_right
from plast_train.tasks.registry import benchmarks_of

SHOWN = 6  # of each kind and benchmark
THUMBNAIL = 168  # pixels; the page shows it at half that size, so that it is sharp on dense screens
Pair = tuple[Record, Record]
_KINDS = {
    "Right before training, wrong after": (True, False),
    "Wrong before training, right after": (False, True),
}


def examples_section(results: Sequence[Result], config: EvaluateConfig, run: RunFolder) -> Section:
    groups = []
    images: dict[tuple[str, str, int], bytes] | None = None
    for result in results:
        pairs = {language: _pairs(run, result.name, language) for language in english_first(result.cells)}
        english = {base["index"]: base["question"] for base, _ in pairs.get(ENGLISH, [])}
        for title, kind in _KINDS.items():
            changed = [
                [pair for pair in own if tuple(generated_right(x, result.rule) for x in pair) == kind]
                for own in pairs.values()
            ]
            shown = list(islice(_in_turn(changed), SHOWN))
            if shown and images is None:  # the benchmark files are large: read only if a card needs them
                images = _images(config)
            rows = f"{sum(map(len, changed))} of {sum(map(len, pairs.values()))} rows"
            cards = [_card(pair, english, images or {}) for pair in shown]
            groups.append({"title": f"{result.name}. {title}: {rows}", "cards": cards})
    return Section("examples", "Examples that changed", {"shown": SHOWN, "groups": groups})


def _pairs(run: RunFolder, benchmark: str, language: str) -> list[Pair]:
    """Both models' records of each row."""
    path = run.evaluation / "predictions" / f"{benchmark}.{language}.jsonl"
    records: dict[str, dict[int, Record]] = defaultdict(dict)
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for record in map(json.loads, file):
                records[record["model"]][record["index"]] = record
    return [(base, records[TRAINED][index]) for index, base in records[BASE].items()]


def _in_turn(groups: Iterable[Sequence[Pair]]) -> Iterator[Pair]:
    """The first of each group, then the second of each, and so on."""
    return (pair for pair in chain.from_iterable(zip_longest(*groups)) if pair is not None)


def _images(config: EvaluateConfig) -> dict[tuple[str, str, int], bytes]:
    """Benchmark, language and index of a question → its image, where it has one."""
    return {
        (own.name, own.language, item.index): item.image_bytes
        for own in benchmarks_of(config)
        for item in own.items
        if item.image_bytes is not None
    }


def _card(
    pair: Pair, english: Mapping[int, str], images: Mapping[tuple[str, str, int], bytes]
) -> dict[str, Any]:
    base, trained = pair
    language, index, answer = base["language"], base["index"], base["answer"]
    image = images.get((base["benchmark"], language, index))
    options = [(letter, text, letter == answer) for letter, text in (base["options"] or {}).items()]
    return {
        "image": None if image is None else data_uri(*thumbnail(image)),
        "index": index,
        "language": language,
        "language_name": language_name(language),
        "question": base["question"],
        "english": english.get(index) if language != ENGLISH else None,
        "options": options or [("", answer, True)],  # an open question has its right answer alone
        "replies": [("before", base["prediction"]), ("after", trained["prediction"])],
    }


def thumbnail(content: bytes) -> tuple[bytes, str]:
    """An image file of at most `THUMBNAIL` pixels a side and its media type: a small image stays lossless as
    PNG, a large one is scaled down to JPEG."""
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
