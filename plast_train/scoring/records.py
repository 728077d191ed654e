"""Prediction records, as they stand in the predictions' files: whether one is right, and which rows count
together as one question.

A record has `benchmark, language, model, index, group, pair, category, question, answer, answers, prediction,
matched {rule: letter, "Z" or None}` (open questions: the right text that the reply is, or None) and
`option_logits {letter: logit}` (open questions: None). From here on: `scores` (one model's accuracies) →
`comparisons` (two models', with `significance`) → `accuracies` (as the tables show both).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

# The models that a run evaluates, and the label of the mean over the languages other than English.
BASE, TRAINED, MEAN = "base", "plast", "mean of the others"

# Way of counting rows that belong together as one question → the records' field that names the question.
TOGETHER = {"circular": "group", "pairs": "pair"}

Record = Mapping[str, Any]
Right = Callable[[Record], bool]


def by_benchmark(records: Iterable[Record]) -> dict[str, dict[str, dict[str, list[Record]]]]:
    """`{benchmark: {language: {model: records}}}`, keys sorted.

    Raises:
        ValueError: models did not answer the same rows.
    """
    cells: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cells[record["benchmark"], record["language"]][record["model"]].append(record)
    table: dict[str, dict[str, dict[str, list[Record]]]] = defaultdict(dict)
    for (benchmark, language), models in sorted(cells.items()):
        table[benchmark][language] = dict(sorted(models.items()))
        first, *others = (sorted(record["index"] for record in own) for own in models.values())
        if any(other != first for other in others):
            names = " and ".join(sorted(models))
            raise ValueError(f"{benchmark} {language}: {names} did not answer the same rows")
    return dict(table)


def generated_right(record: Record, rule: str) -> bool:
    """Whether the reply, matched by `rule`, is right; no match, an empty reply and a refusal are wrong."""
    return record["matched"][rule] in (record.get("answers") or [record["answer"]])


def option_logits_right(record: Record) -> bool:
    """Whether the right option's letter has the highest next-token logit; of equals, the first counts."""
    logits = record["option_logits"]
    return bool(max(sorted(logits), key=logits.__getitem__) == record["answer"])


def headline_rule(rules: Iterable[str], requested: str) -> str:
    """The matching rule whose accuracies tables show: `requested` (evaluate.matching) if it is among the
    rules of a benchmark's replies, else the first of them, for open questions have rules of their own."""
    rules = list(rules)
    return requested if requested in rules else rules[0]


def right_by_score(some: Record, requested: str) -> dict[str, Right]:
    """Score → whether a record of the benchmark that `some` is of is right by it: `generated` by the headline
    rule, and `option_logits` unless its questions are open."""
    rule = headline_rule(some["matched"], requested)
    found: dict[str, Right] = {"generated": partial(generated_right, rule=rule)}
    return found if some["option_logits"] is None else found | {"option_logits": option_logits_right}


def way_together(records: Iterable[Record]) -> str | None:
    """How these records can be counted beside row by row; None where no row belongs to another."""
    named = {way for record in records for way, field in TOGETHER.items() if record.get(field) is not None}
    return next((way for way in TOGETHER if way in named), None)


def by_question(records: Iterable[Record], way: str) -> dict[int, list[Record]]:
    """Question → its rows; one outside any circular question or pair is a question of its own."""
    questions: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        question = record.get(TOGETHER[way])
        questions[record["index"] if question is None else question].append(record)
    return questions
