"""Replies matched to options: every recorded answer of both public rules, and the turns of each rule."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from plast_train.tasks.matching import REFUSAL, RULES, match_reply

FRUIT = {"A": "apple", "B": "banana", "C": "cherry", "D": "date"}


@pytest.mark.parametrize("rule", RULES)
def test_agrees_with_every_recorded_answer(shared: Path, rule: str) -> None:
    lines = (shared / "data" / "answer_matching.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2276
    wrong = [
        (row["lang"], row["choices"], row["prediction"], row[f"opt_{rule}"])
        for row in rows
        if match_reply(row["prediction"], row["choices"], rule) != (row[f"opt_{rule}"] or None)
    ]
    assert wrong == []
    # The file tells the rules apart, so that passing with one rule for both is impossible.
    assert Counter(row["opt_parrot2024"] == row["opt_vlmevalkit2026"] for row in rows)[False] == 216


@pytest.mark.parametrize(
    ("reply", "older", "newer"),
    [
        ("B", "B", "B"),
        ("{B}", "B", "B"),
        ("b", None, None),
        ("A or B", None, None),
        ("Z", "Z", "Z"),
        ("Cannot determine the answer, B", "Z", "Z"),
        ("Failed to obtain answer via API: B", None, None),
        ("Failed to obtain answer via API: banana", None, None),
        ("C one two three", "C", "C"),  # fourth word from the end
        ("C one two three four", "C", None),  # fifth
        ("The correct answer is **D** since A is sour and green", None, "D"),
        ("the answer is E, for B is not what the picture shows", "B", None),
        ("BANANA", "B", "B"),
        ("a banana and a cherry", None, None),
        ("banana" + " very" * 9, "B", None),  # longer than twice the options' 21 letters
        ("", None, None),
    ],
)
def test_turns_of_the_rules(reply: str, older: str | None, newer: str | None) -> None:
    assert match_reply(reply, FRUIT) == older
    assert match_reply(reply, FRUIT, "vlmevalkit2026") == newer


def test_only_letters_that_are_options_count() -> None:
    assert match_reply("D", {"A": "yes", "B": "no"}) is None
    assert match_reply("D B", {"A": "yes", "B": "no"}) == "B"
    assert match_reply("E", {"A": "yes", "B": "no", "E": "none"}) == "E"


def test_options_are_not_changed() -> None:
    options = {"A": "Apple", "B": "Banana"}
    match_reply("banana", options)
    assert options == {"A": "Apple", "B": "Banana"}


def test_particulars_of_the_public_rules() -> None:
    options = {"A": "dog", "B": "horse"}
    assert match_reply("The ANSWER IS b, as one can see so very well", options, "vlmevalkit2026") == "B"
    assert match_reply("the answer is a cat, as one can see so very well", options, "vlmevalkit2026") == "A"
    for rule in RULES:
        assert match_reply("Z or rather A", options, rule) == "A"
        assert match_reply("Z", options, rule) == REFUSAL
