"""Prompt texts, and accuracies of records small enough to score by hand."""

from __future__ import annotations

from typing import Any

import pytest

from plast_train.errors import UserError
from plast_train.scoring.records import option_logits_right
from plast_train.scoring.scores import results, scores
from plast_train.tasks.prompts import INSTRUCTIONS, multiple_choice_text


def record(older: str | None, newer: str | None, logits: str, **fields: Any) -> dict[str, Any]:
    """A record whose right answer is A; `logits` is the letter with the highest one."""
    defaults = {"benchmark": "b", "language": "pt", "model": "base", "index": 0, "group": None}
    return {
        **defaults,
        "category": "object",
        "question": "What is this?",
        "prediction": older or "",
        "answer": "A",
        "matched": {"parrot2024": older, "vlmevalkit2026": newer},
        "option_logits": {letter: float(letter == logits) for letter in "ABC"},
        **fields,
    }


def test_text_of_a_question() -> None:
    options = {"A": "cat", "C": "None"}
    english = "Answer with the option's letter from the given choices directly."
    assert multiple_choice_text("What?", options) == f"What?\nA. cat\nC. None\n{english}"
    assert multiple_choice_text("What?", options, "Look.") == f"Look.\nWhat?\nA. cat\nC. None\n{english}"


@pytest.mark.parametrize(
    ("question", "options", "language"),
    [
        ("这是什么？", {"A": "x", "B": "y"}, "zh"),
        ("What?", {"A": "x", "B": "猫"}, "zh"),
        ("Что это？", {"A": "x", "B": "y"}, "en"),  # a full-width question mark is no ideograph
        ("무엇?", {"A": "x", "B": "y"}, "en"),
    ],
)
def test_instruction_is_chinese_where_there_are_ideographs(
    question: str, options: dict[str, str], language: str
) -> None:
    assert multiple_choice_text(question, options).endswith("\n" + INSTRUCTIONS[language])


def test_localised_instruction() -> None:
    text = multiple_choice_text("Что это?", {"A": "x", "B": "y"}, instruction_language="ru")
    assert text.endswith("\nB. y\nОтветьте сразу буквой правильного варианта из предложенных.")
    with pytest.raises(UserError, match="no multiple-choice instruction in 'ko'; there is one in en, zh"):
        multiple_choice_text("Q", {"A": "x", "B": "y"}, instruction_language="ko")


def test_plain_scores_by_rule_and_category() -> None:
    found = scores(
        [
            record("A", "A", "A"),
            record("A", None, "B"),
            record("Z", "Z", "A", category="color"),
            record("B", "A", "C", category="color"),
        ]
    )
    assert found["n"] == 4
    assert found["generated"] == {"parrot2024": 0.5, "vlmevalkit2026": 0.5}
    assert found["option_logits"] == 0.5
    assert found["no_match"] == {"parrot2024": 0.0, "vlmevalkit2026": 0.25}  # a refusal is a match
    assert "circular" not in found
    assert found["categories"]["object"]["generated"] == {"parrot2024": 1.0, "vlmevalkit2026": 0.5}
    assert found["categories"]["color"]["generated"] == {"parrot2024": 0.0, "vlmevalkit2026": 0.5}
    assert found["categories"]["color"]["option_logits"] == 0.5


def test_a_circular_question_counts_only_if_all_its_rows_are_right() -> None:
    found = scores(
        [
            record("A", "A", "A", group=7),
            record("A", "A", "A", group=8),
            record("A", "B", "A", group=7),
            record("A", "A", "B", group=8),
        ]
    )
    assert found["generated"] == {"parrot2024": 1.0, "vlmevalkit2026": 0.75}
    assert found["circular"] == {
        "n": 2,
        "generated": {"parrot2024": 1.0, "vlmevalkit2026": 0.5},
        "option_logits": 0.5,
    }


def test_of_equal_logits_the_first_letter_counts() -> None:
    assert option_logits_right(record("A", "A", "A", option_logits={"C": -1.0, "B": -2.0, "A": -1.0}))
    assert not option_logits_right(record("A", "A", "A", option_logits={"A": -3.0, "B": -2.0}))


def test_results_table() -> None:
    table = results(
        [
            record("B", "B", "B", model="base"),
            record("A", "A", "A", model="plast"),
            record("A", "A", "A", language="ar"),
        ]
    )
    assert list(table) == ["b"]
    assert list(table["b"]) == ["ar", "pt"]
    assert list(table["b"]["pt"]) == ["n", "base", "plast"]
    assert table["b"]["pt"]["n"] == 1
    assert table["b"]["pt"]["base"]["generated"]["parrot2024"] == 0.0
    assert table["b"]["pt"]["plast"]["generated"]["parrot2024"] == 1.0


def test_models_must_have_answered_the_same_rows() -> None:
    with pytest.raises(ValueError, match="b pt: base and plast did not answer the same rows"):
        results([record("A", "A", "A", index=1), record("A", "A", "A", model="plast", index=2)])
