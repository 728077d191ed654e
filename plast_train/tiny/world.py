"""Writes the tiny world's files: parallel questions, and a benchmark in each language."""

import base64
import csv
import io
import json
import random
from pathlib import Path

from plast_train.tiny.languages import KINDS, ask
from plast_train.tiny.scenes import (
    Query,
    Scene,
    any_query,
    asked_about,
    bounds,
    draw_scene,
    query,
    render,
)
from plast_train.tiny.words import LANGUAGES, answer_text

RECORDS = 900
RECORDS_PER_IMAGE = 2
# Kinds answered by yes or no can be guessed half of the time, so there are fewer of them.
ITEMS = {kind: 16 if kind in ("exists", "count check") else 32 for kind in KINDS}
COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "l2-category",
    "image",
    "split",
)


def draw_world(folder: Path, seed: int) -> None:
    """Write `questions.jsonl`, `images/` and two benchmarks into `folder`; the same for the same seed.

    `questions.jsonl` holds parallel questions (DESIGN §4) for probing and training, with the box of the
    object where a question is about one. Each TSV holds the same 288 multiple-choice items (METHOD §5),
    about other images than the questions: in `tiny_{language}.tsv` with the options translated, too (as in
    MMBench), in `tiny-english-options_{language}.tsv` with English ones (as xGQA's answers are).
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"tiny world, tuning, {seed}")
    lines = []
    for number in range(RECORDS // RECORDS_PER_IMAGE):
        scene = draw_scene(rng, "tuning")
        name = f"images/tiny-{number:04d}.png"
        (folder / name).write_bytes(png(scene))
        for part in range(RECORDS_PER_IMAGE):
            asked = any_query(rng, scene)
            questions = {lang: ask(lang, asked.kind, asked.wording, asked.subject) for lang in LANGUAGES}
            record = {
                "id": f"tiny-{number:04d}-{part}",
                "image": name,
                "questions": questions,
                "answer": answer_text("en", asked.answer),
            }
            thing = asked_about(scene, asked)
            box = {} if thing is None else {"box": bounds(scene, thing)}
            lines.append(json.dumps(record | box, ensure_ascii=False))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    items = benchmark_items(seed)
    for language in LANGUAGES:
        _write_benchmark(folder / f"tiny_{language}.tsv", items, language, language)
        _write_benchmark(folder / f"tiny-english-options_{language}.tsv", items, language, "en")


def benchmark_items(seed: int) -> list[tuple[Scene, Query]]:
    """The benchmark's scenes and questions, one scene an item."""
    rng = random.Random(f"tiny world, evaluation, {seed}")
    items = []
    for kind, count in ITEMS.items():
        made = 0
        while made < count:
            scene = draw_scene(rng, "evaluation")
            asked = query(rng, scene, kind)
            if asked is not None:
                items.append((scene, asked))
                made += 1
    rng.shuffle(items)
    return items


def option_rows(language: str, asked: Query) -> dict[str, str]:
    """The options' texts by letter."""
    return {
        letter: answer_text(language, value) for letter, value in zip("ABCD", asked.options, strict=False)
    }


def multiple_choice(language: str, asked: Query, question: str | None = None) -> str:
    """The benchmark's prompt (METHOD §5): question (another one if given), options and instruction."""
    question = question or ask(language, asked.kind, asked.wording, asked.subject)
    options = "".join(f"\n{letter}. {text}" for letter, text in option_rows(language, asked).items())
    english = "Answer with the option's letter from the given choices directly."
    return f"{question}{options}\n{'请直接回答选项字母。' if language == 'zh' else english}"


def letter(asked: Query) -> str:
    """The right option's letter."""
    return "ABCD"[asked.options.index(asked.answer)]


def png(scene: Scene) -> bytes:
    """The rendered scene as a PNG file."""
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()


def _write_benchmark(
    path: Path, items: list[tuple[Scene, Query]], language: str, options_language: str
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
        rows.writeheader()
        for index, (scene, asked) in enumerate(items):
            rows.writerow(
                {
                    "index": index,
                    "question": ask(language, asked.kind, asked.wording, asked.subject),
                    **option_rows(options_language, asked),
                    "answer": letter(asked),
                    "category": asked.kind,
                    "l2-category": asked.kind.split()[0],
                    "image": base64.b64encode(png(scene)).decode("ascii"),
                    "split": "test",
                }
            )
