"""Prediction records → each model's scores. Accuracies and shares are fractions of 1."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from plast_train.data.languages import ENGLISH
from plast_train.scoring.records import (
    Record,
    by_benchmark,
    by_question,
    generated_right,
    option_logits_right,
    way_together,
)
from plast_train.scoring.replies import repeats_question, reply_language


def results(records: Iterable[Record]) -> dict[str, Any]:
    """`{benchmark: {language: {"n": rows, model: scores}}}`, keys sorted; for `scores` see there."""
    table: dict[str, Any] = {}
    for benchmark, languages in by_benchmark(records).items():
        english = {
            record["index"]: record["question"]
            for own in languages.get(ENGLISH, {}).values()
            for record in own
        }
        table[benchmark] = {
            language: {
                "n": len(next(iter(models.values()))),
                **{model: scores(own, english) for model, own in models.items()},
            }
            for language, models in languages.items()
        }
    return table


def scores(records: Sequence[Record], english: Mapping[int, str] | None = None) -> dict[str, Any]:
    """The scores of one model on one benchmark in one language, and under `categories` of each category.

    Beside those of `_scores` there are `empty` and `translations`, the shares of replies that are nothing,
    and that repeat the question (in English or as asked) instead of answering, and `reply_languages {code:
    share}`, the most frequent first. `english` has the English text of each question, by index, where it is
    known.
    """
    count = len(records)
    repeats = [
        repeats_question(record["prediction"], record["question"], (english or {}).get(record["index"]))
        for record in records
    ]
    languages = Counter(reply_language(record["prediction"], record["language"]) for record in records)
    categories: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        categories[record["category"]].append(record)
    return {
        **_scores(records),
        "empty": sum(not record["prediction"] for record in records) / count,
        "translations": sum(repeats) / count,
        "reply_languages": {code: number / count for code, number in languages.most_common()},
        "categories": {category: _scores(own) for category, own in sorted(categories.items())},
    }


def _scores(records: Sequence[Record]) -> dict[str, Any]:
    """`generated {rule: accuracy}`, `option_logits` (accuracy, or None) and `no_match {rule: share}`, over
    rows; a reply matches nothing if it names no option, or, to an open question, if it is empty.

    A circular benchmark adds `circular`, the same accuracies over questions: one counts only if all its rows
    are right. A plain one with yes/no pairs adds `pairs`, where two questions of a pair count as one, right
    if both are.
    """

    def unmatched(record: Record, rule: str) -> bool:
        # An open question's reply is compared with few right texts: that it is none of them is just wrong.
        is_open = record["option_logits"] is None
        return not record["prediction"] if is_open else record["matched"][rule] is None

    found = {
        **_accuracies([[record] for record in records]),
        "no_match": {
            rule: sum(unmatched(record, rule) for record in records) / len(records)
            for rule in records[0]["matched"]
        },
    }
    way = way_together(records)
    return found | {way: _accuracies(by_question(records, way).values())} if way else found


def _accuracies(questions: Collection[list[Record]]) -> dict[str, Any]:
    """Over questions, each right if all its rows are."""
    some = next(iter(questions))[0]

    def accuracy(right: Callable[[Record], bool]) -> float:
        return sum(all(map(right, rows)) for rows in questions) / len(questions)

    return {
        "n": len(questions),
        "generated": {rule: accuracy(partial(generated_right, rule=rule)) for rule in some["matched"]},
        "option_logits": None if some["option_logits"] is None else accuracy(option_logits_right),
    }
