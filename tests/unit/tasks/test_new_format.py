"""A new benchmark format is one module and one entry in the registry: here a made-up one, taken from its file
to its scores and through the launcher's checks, with nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from plast_train.config import load_config, with_values
from plast_train.errors import UserError
from plast_train.evaluation.answering import record_of
from plast_train.lvlm.families import LLAVA_CHAT
from plast_train.scoring.comparisons import compare_all
from plast_train.scoring.questions import questions_of
from plast_train.scoring.scores import results
from plast_train.tasks import registry
from plast_train.tasks.benchmark import Benchmark, Format, Item, image_of_file, name_and_language


# The module that a new format would be: riddles, one a line, `QUESTION | ANSWER | IMAGE`.
def recognises(path: Path) -> bool:
    return path.suffix == ".riddles"


def rows(path: Path) -> Iterator[list[str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 3:
            raise UserError(f"{path}, line {number}: {len(cells)} cells; write QUESTION | ANSWER | IMAGE")
        yield cells


def read(path: Path, image_root: Path) -> list[Benchmark]:
    name, language = name_and_language(path)
    items = []
    for index, (question, answer, image) in enumerate(rows(path)):
        content = image_of_file(f"{path}, line {index + 1}", image, image_root)
        items.append(Item(index, question, "", {}, answer, "", "", content, None, answers=(answer,)))
    return [Benchmark(path, name, language, items, RIDDLES)]


def image_names(path: Path) -> list[str]:
    return [image for _, _, image in rows(path)]


def ask(item: Item, language: str, _localised: bool) -> str:
    return f"Riddle ({language}): {item.question}"


def match(item: Item, reply: str) -> dict[str, str | None]:
    return {"contains": item.answer if item.answer in reply else None}


RIDDLES = Format("NAME_LANGUAGE.riddles (riddles)", recognises, read, image_names, ask, match)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    path = tmp_path / "evening_pt.riddles"
    path.write_text("O que é? | gato | a.png\nE isto? | cão | a.png\n", encoding="utf-8")
    return path


def test_unknown_without_its_entry(path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown benchmark format; give NAME_LANGUAGE.tsv, .*jsonl"):
        registry.read_benchmark(path)


def test_from_file_to_scores(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, RIDDLES))
    config = with_values(load_config("tiny"), {"evaluate.benchmarks": [str(path)]}, "test")
    (benchmark,) = registry.benchmarks_of(config.evaluate)
    assert (benchmark.name, benchmark.language, len(benchmark.items)) == ("evening", "pt", 2)

    red = registry.benchmark_hashes(config.evaluate)
    Image.new("RGB", (8, 8), "blue").save(path.parent / "a.png")
    assert set(red) == {path.name} and registry.benchmark_hashes(config.evaluate) != red

    questions = questions_of([benchmark], LLAVA_CHAT)
    assert "Riddle (pt): O que é?" in questions[0].prompt and questions[0].has_image
    records = [
        {"model": model, **record_of(question, reply, None)}
        for model, replies in (("base", ("um rato", "um cão")), ("plast", ("um gato", "o cão")))
        for question, reply in zip(questions, replies, strict=True)
    ]
    scores = results(records)["evening"]["pt"]
    assert scores["base"]["generated"] == {"contains": 0.5}
    assert scores["plast"]["generated"] == {"contains": 1.0}
    compared = compare_all(records, "base", "plast", config.evaluate.matching)
    assert compared["evening"]["pt"]["rule"] == "contains"
    path.write_text("O que é?\n")
    with pytest.raises(UserError, match=r"line 1: 1 cells; write QUESTION \| ANSWER \| IMAGE"):
        registry.benchmarks_of(config.evaluate)
