"""What kind of text a reply is, and open answers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from plast_train.scoring.replies import repeats_question, reply_language
from plast_train.tasks.benchmark import Item
from plast_train.tasks.matching import match_open
from plast_train.tasks.parallel_questions import ENGLISH_ANSWERS, LOCAL_ANSWERS
from plast_train.tasks.prompts import open_text


@pytest.mark.parametrize(
    ("reply", "asked", "language"),
    [
        ("A", "ar", "und"),
        ("", "ar", "und"),
        ("42.", "pt", "und"),
        ("The cat is on the table", "pt", "en"),
        ("O gato está em cima da mesa", "tr", "pt"),
        ("Кошка на столе", "ru", "ru"),
        ("Кіт на столі", "uk", "uk"),
        ("Кошка на столе", "en", "ru"),
        ("القط على الطاولة", "ar", "ar"),
        ("猫在桌子上", "zh-Hans", "zh-Hans"),
        ("猫はテーブルの上です", "zh", "ja"),
        ("고양이", "ko", "ko"),
        ("বিড়াল", "bn", "bn"),
        ("xyzzy plugh", "sw", "und"),
        ("de", "nl", "nl"),
        ("A. 猫在桌子上", "pt", "zh"),
    ],
)
def test_language_of_a_reply(reply: str, asked: str, language: str) -> None:
    assert reply_language(reply, asked) == language


def test_language_of_real_questions(shared: Path) -> None:
    """As whole sentences, xGQA's questions show their language nearly always."""
    lines = (shared / "data" / "xgqa.jsonl").read_text(encoding="utf-8").splitlines()[::10]
    for language in ("en", "de", "pt", "ru", "id", "bn", "ko", "zh"):
        found = Counter(reply_language(json.loads(line)["questions"][language], "tr") for line in lines)
        assert found[language] / found.total() > 0.85, (language, found)
        assert (found[language] + found["und"]) / found.total() > 0.96, (language, found)


@pytest.mark.parametrize(
    ("reply", "repeats"),
    [
        ("What color is the cat?", True),
        ("Which colour is the cat?", True),  # another translation, itself a question
        ("what color is the cat", True),
        ("De que cor é o gato?", True),  # echoed
        ("The cat is red.", False),
        ("The color of the cat is red, not blue", False),
        ("A", False),
        ("B. the cat", False),
        ("", False),
        ("How many dogs are there in the picture?", False),
    ],
)
def test_replies_that_repeat_the_question(reply: str, repeats: bool) -> None:
    assert repeats_question(reply, "De que cor é o gato?", "What color is the cat?") == repeats


def test_translations_of_real_questions(shared: Path) -> None:
    lines = (shared / "data" / "xgqa.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    records = [json.loads(line) for line in lines]
    for record, other in zip(records, [*records[100:], *records[:100]], strict=True):
        english, chinese = record["questions"]["en"], record["questions"]["zh"]
        assert repeats_question(english, chinese, english) and repeats_question(chinese, chinese, english)
        assert not repeats_question(record["answer"], chinese, english)
        if record["group"] != other["group"]:
            assert not repeats_question(other["answer"], chinese, english)


@pytest.mark.parametrize(
    ("reply", "xgqa", "maxm"),
    [
        ("white", "white", "white"),
        ("White.", "white", None),
        (" white ", "white", "white"),
        ("it is white", None, None),
        ("café au lait", "café au lait", "café au lait"),
        ("cafe\u0301 au lait", "café au lait", "café au lait"),
        ("T-shirt", "t shirt", None),
        ("", None, None),
    ],
)
def test_open_answers(reply: str, xgqa: str | None, maxm: str | None) -> None:
    answers = ["white", "café au lait", "t shirt"]
    assert (match_open(reply, answers, "xgqa"), match_open(reply, answers, "maxm")) == (xgqa, maxm)


@pytest.mark.parametrize(("reply", "answer"), [("", "?"), ("", ""), (" ", " "), ("?", "?"), ("…!", "-")])
def test_nothing_is_no_right_answer(reply: str, answer: str) -> None:
    assert match_open(reply, [answer], "xgqa") is None
    assert match_open(reply, [answer], "maxm") == ("?" if reply == "?" else None)


def test_open_questions_are_asked_for_the_answers_language() -> None:
    assert open_text("Q?", "en", "en") == "Q?\nAnswer the question using a single word or phrase."
    assert open_text("Q?", "pt", "en").endswith("word or phrase in English.")
    assert open_text("Q?", "pt", "pt").endswith("word or phrase in Portuguese.")


def test_open_questions_are_scored_by_their_benchmarks_rule() -> None:
    item = Item(0, "Q?", "", {}, "white", "", "", None, None, answers=("white",))
    assert list(ENGLISH_ANSWERS.match(item, "White.").items()) == [("xgqa", "white"), ("maxm", None)]
    assert list(LOCAL_ANSWERS.match(item, "White.").items()) == [("maxm", None), ("xgqa", "white")]
