"""Prediction records → accuracies. Pure functions on plain dicts, as they stand in the predictions' files.

A record has `benchmark, language, model, index, group, category, answer, matched {rule: letter, "Z" or None}`
and `option_logits {letter: logit}`. Accuracies and shares are fractions of 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from plast_train.evaluation.matching import RULES

Record = Mapping[str, Any]


def results(records: Iterable[Record]) -> dict[str, Any]:
    """`{benchmark: {language: {"n": rows, model: scores}}}`, keys sorted; for `scores` see there."""
    cells: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cells[record["benchmark"], record["language"]][record["model"]].append(record)
    table: dict[str, Any] = {}
    for (benchmark, language), models in sorted(cells.items()):
        rows = {model: sorted(record["index"] for record in own) for model, own in sorted(models.items())}
        first, *others = rows.values()
        if any(other != first for other in others):
            raise ValueError(f"{benchmark} {language}: {' and '.join(rows)} did not answer the same rows")
        cell = {model: scores(models[model]) for model in rows}
        table.setdefault(benchmark, {})[language] = {"n": len(first), **cell}
    return table


def scores(records: list[Record]) -> dict[str, Any]:
    """The scores of one model on one benchmark in one language, and under `categories` of each category."""
    categories: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        categories[record["category"]].append(record)
    return {
        **_scores(records),
        "categories": {category: _scores(own) for category, own in sorted(categories.items())},
    }


def _scores(records: list[Record]) -> dict[str, Any]:
    """`generated {rule: accuracy}`, `option_logits` (accuracy) and `no_match {rule: share}`, all over rows.

    A circular benchmark adds `circular`, the same accuracies over questions: one counts only if all its rows
    are right.
    """
    unmatched = {rule: sum(record["matched"][rule] is None for record in records) for rule in RULES}
    result = {
        "n": len(records),
        **_accuracies([[record] for record in records]),
        "no_match": {rule: count / len(records) for rule, count in unmatched.items()},
    }
    if records[0]["group"] is not None:
        questions: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            questions[record["group"]].append(record)
        result["circular"] = {"n": len(questions), **_accuracies(list(questions.values()))}
    return result


def _accuracies(questions: list[list[Record]]) -> dict[str, Any]:
    def accuracy(right: Callable[[Record], bool]) -> float:
        return sum(all(map(right, rows)) for rows in questions) / len(questions)

    return {
        "generated": {rule: accuracy(partial(generated_right, rule=rule)) for rule in RULES},
        "option_logits": accuracy(option_logits_right),
    }


def generated_right(record: Record, rule: str) -> bool:
    """Whether the reply, matched by `rule`, names the right option; no match and a refusal are wrong."""
    return bool(record["matched"][rule] == record["answer"])


def option_logits_right(record: Record) -> bool:
    """Whether the right option's letter has the highest next-token logit; of equals, the first counts."""
    logits = record["option_logits"]
    return bool(max(sorted(logits), key=logits.__getitem__) == record["answer"])
