"""Prediction records → accuracies. Pure functions on plain dicts, as they stand in the predictions' files.

A record has `benchmark, language, model, index, group, pair, category, question, answer, prediction,
matched {rule: letter, "Z" or None}` (open questions: the right text that the reply is, or None) and
`option_logits {letter: logit}` (open questions: None). Accuracies and shares are fractions of 1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from plast_train.data.languages import ENGLISH
from plast_train.scoring.comparisons import (
    Record,
    compare,
    generated_right,
    option_logits_right,
    question_of,
    way_together,
)
from plast_train.scoring.replies import repeats_question, reply_language

Cells = dict[tuple[str, str], dict[str, list[Record]]]  # (benchmark, language) → model → records


def results(records: Iterable[Record]) -> dict[str, Any]:
    """`{benchmark: {language: {"n": rows, model: scores}}}`, keys sorted; for `scores` see there."""
    cells = _cells(records)
    english = {
        (benchmark, record["index"]): record["question"]
        for (benchmark, language), models in cells.items()
        for own in models.values()
        for record in own
        if language == ENGLISH
    }
    table: dict[str, Any] = {}
    for (benchmark, language), models in cells.items():
        questions = {index: text for (name, index), text in english.items() if name == benchmark}
        cell = {model: scores(own, questions) for model, own in models.items()}
        count = len(next(iter(models.values())))
        table.setdefault(benchmark, {})[language] = {"n": count, **cell}
    return table


def compare_all(records: Iterable[Record], base: str, trained: str, matching: str) -> dict[str, Any]:
    """`{benchmark: {language or "mean of the others": comparison}}`; for the comparison see
    `comparisons.compare`."""
    by_benchmark: dict[str, dict[str, dict[str, list[Record]]]] = defaultdict(dict)
    for (benchmark, language), models in _cells(records).items():
        by_benchmark[benchmark][language] = models
    return {
        benchmark: compare(
            {language: models[base] for language, models in languages.items()},
            {language: models[trained] for language, models in languages.items()},
            matching,
        )
        for benchmark, languages in by_benchmark.items()
    }


def _cells(records: Iterable[Record]) -> Cells:
    """Keys sorted. Raises ValueError where models did not answer the same rows."""
    cells: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cells[record["benchmark"], record["language"]][record["model"]].append(record)
    for (benchmark, language), models in cells.items():
        rows = {model: sorted(record["index"] for record in own) for model, own in sorted(models.items())}
        first, *others = rows.values()
        if any(other != first for other in others):
            raise ValueError(f"{benchmark} {language}: {' and '.join(rows)} did not answer the same rows")
    return {key: dict(sorted(models.items())) for key, models in sorted(cells.items())}


def scores(records: list[Record], english: Mapping[int, str] | None = None) -> dict[str, Any]:
    """The scores of one model on one benchmark in one language, and under `categories` of each category.

    `english` has the English text of each question, by index, where it is known.
    """
    categories: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        categories[record["category"]].append(record)
    return {
        **_scores(records),
        **_replies(records, english or {}),
        "categories": {category: _scores(own) for category, own in sorted(categories.items())},
    }


def _scores(records: list[Record]) -> dict[str, Any]:
    """`generated {rule: accuracy}`, `option_logits` (accuracy, or None) and `no_match {rule: share}`, over
    rows; a reply matches nothing if it names no option, or, to an open question, if it is empty.

    A circular benchmark adds `circular`, the same accuracies over questions: one counts only if all its rows
    are right. A plain one with yes/no pairs adds `pairs`, where two questions of a pair count as one, right
    if both are.
    """
    rules = list(records[0]["matched"])
    result = {
        "n": len(records),
        **_accuracies([[record] for record in records]),
        "no_match": {rule: sum(_unmatched(r, rule) for r in records) / len(records) for rule in rules},
    }
    way = way_together(records)
    return result | {way: _together(records, way)} if way else result


def _unmatched(record: Record, rule: str) -> bool:
    return not record["prediction"] if record["option_logits"] is None else record["matched"][rule] is None


def _together(records: list[Record], way: str) -> dict[str, Any]:
    questions: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        questions[question_of(record, way)].append(record)
    return {"n": len(questions), **_accuracies(list(questions.values()))}


def _accuracies(questions: list[list[Record]]) -> dict[str, Any]:
    def accuracy(right: Callable[[Record], bool]) -> float:
        return sum(all(map(right, rows)) for rows in questions) / len(questions)

    some = questions[0][0]
    return {
        "generated": {rule: accuracy(partial(generated_right, rule=rule)) for rule in some["matched"]},
        "option_logits": None if some["option_logits"] is None else accuracy(option_logits_right),
    }


def _replies(records: list[Record], english: Mapping[int, str]) -> dict[str, Any]:
    """`empty` and `translations`, shares of replies that are nothing, and that repeat the question (in
    English or as asked) instead of answering; `reply_languages {code: share}`, the most frequent first."""
    repeats = [
        repeats_question(record["prediction"], record["question"], english.get(record["index"]))
        for record in records
    ]
    languages = Counter(reply_language(record["prediction"], record["language"]) for record in records)
    return {
        "empty": sum(not record["prediction"] for record in records) / len(records),
        "translations": sum(repeats) / len(records),
        "reply_languages": {code: count / len(records) for code, count in languages.most_common()},
    }
