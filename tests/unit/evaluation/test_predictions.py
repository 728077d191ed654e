"""What is kept of earlier answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plast_train.config import EvaluateConfig
from plast_train.evaluation.predictions import answers_depend_on, append_part, open_parts, read_parts
from plast_train.scoring.questions import Question
from plast_train.tasks.benchmark import Benchmark, Item
from plast_train.tasks.vlmevalkit_table import FORMAT


def record(index: int, digest: str) -> dict[str, Any]:
    return {"benchmark": "b", "language": "pt", "index": index, "digest": digest}


def key(index: int) -> tuple[str, str, int]:
    return "b", "pt", index


def test_answers_to_changed_questions_are_dropped_and_others_stay(tmp_path: Path) -> None:
    assert open_parts(tmp_path, {"weights": "x"}, {}) == set()
    append_part(tmp_path, 0, [record(0, "as asked"), record(1, "before")])
    append_part(tmp_path, 1, [record(2, "as asked"), record(3, "of another benchmark")])
    now = {key(0): "as asked", key(1): "after", key(2): "as asked", key(4): "never answered"}
    assert open_parts(tmp_path, {"weights": "x"}, now) == {key(0), key(2)}
    assert [r["index"] for r in read_parts(tmp_path)] == [0, 2, 3]
    assert open_parts(tmp_path, {"weights": "y"}, now) == set()
    assert read_parts(tmp_path) == []


def test_the_batch_size_matters_below_float32_only() -> None:
    four, eight = (EvaluateConfig(batch_size=size) for size in (4, 8))
    assert answers_depend_on(four, "float32", "w") == answers_depend_on(eight, "float32", "w")
    assert answers_depend_on(four, "bfloat16", "w") != answers_depend_on(eight, "bfloat16", "w")


ITEM = Item(
    3, "Which?", "", {"A": "cat", "B": "dog"}, "A", "animals", "all", b"picture", None, None, ("cat",)
)


def digest_of(prompt: str = "Which? A B", **changes: Any) -> str:
    item = replace(ITEM, **changes)
    return Question(Benchmark(Path("quiz_en.tsv"), "quiz", "en", [item], FORMAT), item, prompt).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": "B"},
        {"answers": ("cat", "tomcat")},
        {"category": "pets"},
        {"l2_category": "some"},
        {"pair": 1},
        {"options": {"A": "cat", "B": "wolf"}},
        {"image_bytes": b"another"},
        {"image_bytes": None},
        {"prompt": "Which one? A B"},
    ],
)
def test_a_question_is_another_with_another_answer_or_content(changes: dict[str, Any]) -> None:
    assert digest_of() == digest_of() != digest_of(**changes)
