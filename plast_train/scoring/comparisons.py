"""Two models' records on one benchmark → what changed, per language and for the mean of the others, with
intervals and p values.

A comparison is `{change, low, high, p, only_base, only_trained}`, accuracies as fractions of 1: the change of
the accuracy, its 95 % bootstrap interval (None where one unit leaves none), the units that just one model has
(more) right, and McNemar's exact p of them. A unit is a question: a row, all rows of a circular question, or,
where pairs are counted together, the two of a yes/no pair. For rows of circular files and for the mean over
languages, a unit is one model's if that has more of its rows right; the test is then the exact sign test, of
which McNemar's is the case of one row a unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np

from plast_train.data.languages import ENGLISH
from plast_train.scoring.accuracies import MEAN, headline_rule
from plast_train.scoring.significance import differing_units, holm, interval, mcnemar
from plast_train.tasks.matching import RULES

Record = Mapping[str, Any]
Right = Callable[[Record], bool]
# unit → rows that the trained model has right and the base has not, less the reverse; rows
Units = dict[int, tuple[int, int]]
# Way of counting rows that belong together as one question → the records' field that names the question.
TOGETHER = {"circular": "group", "pairs": "pair"}


def generated_right(record: Record, rule: str) -> bool:
    """Whether the reply, matched by `rule`, is right; no match, an empty reply and a refusal are wrong."""
    return record["matched"][rule] in (record.get("answers") or [record["answer"]])


def option_logits_right(record: Record) -> bool:
    """Whether the right option's letter has the highest next-token logit; of equals, the first counts."""
    logits = record["option_logits"]
    return bool(max(sorted(logits), key=logits.__getitem__) == record["answer"])


def way_together(records: Iterable[Record]) -> str | None:
    """How these records can be counted beside row by row; None where no row belongs to another."""
    named = {way for record in records for way, field in TOGETHER.items() if record.get(field) is not None}
    return next((way for way in TOGETHER if way in named), None)


def question_of(record: Record, way: str) -> int:
    """A row without circular question or pair is a question of its own."""
    question = record.get(TOGETHER[way])
    return int(record["index"] if question is None else question)


def compare(
    base: Mapping[str, Sequence[Record]],
    trained: Mapping[str, Sequence[Record]],
    matching: str = RULES[0],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The comparisons of one benchmark: each language, English first, then the mean of the others.

    `base` and `trained`: language → records of the same rows. For each there is `rule`; `generated` and
    `option_logits` (None for open questions), each a comparison, those of a language with `p_holm`, its p
    corrected over the languages; `formatting`, whether the interval of `generated` lies above 0 and that of
    `option_logits` does not: the gain is one in the form of answers. A circular benchmark adds `circular`,
    the same over questions whose rows must all be right; one with yes/no pairs `pairs`, where both must be.
    """
    some = next(iter(base.values()))[0]
    rule = headline_rule(some["matched"], matching)
    languages = sorted(base, key=lambda language: (language != ENGLISH, language))
    scores: dict[str, Right] = {"generated": partial(generated_right, rule=rule)}
    if some["option_logits"] is not None:
        scores["option_logits"] = option_logits_right
    together = way_together(chain.from_iterable(base.values()))
    found: dict[str | None, dict[str, dict[str, Any]]] = {}
    for way in dict.fromkeys([None, together]):
        by_score = {
            name: _by_language({x: units_of(base[x], trained[x], right, way) for x in languages}, seed)
            for name, right in scores.items()
        }
        found[way] = {label: _joined(by_score, label) for label in by_score["generated"]}
    return {
        label: {"rule": rule, **own, **({together: found[together][label]} if together else {})}
        for label, own in found[None].items()
    }


def _joined(by_score: Mapping[str, Mapping[str, Any]], label: str) -> dict[str, Any]:
    generated = by_score["generated"][label]
    logits = by_score["option_logits"][label] if "option_logits" in by_score else None
    formatting = logits is not None and is_formatting(generated["low"], logits["low"])
    return {"generated": generated, "option_logits": logits, "formatting": formatting}


def is_formatting(generated: float | None, option_logits: float | None) -> bool:
    """Whether a gain shows in generated answers alone, by the lower ends of the changes' intervals."""
    return (generated or 0) > 0 and (option_logits or 0) <= 0


def units_of(base: Sequence[Record], trained: Sequence[Record], right: Right, way: str | None) -> Units:
    """The gains of each unit, by the index of its question. With a way of `TOGETHER` a unit counts as one
    row, right if all its rows are."""
    rows: dict[int, list[tuple[bool, bool]]] = defaultdict(list)
    after = {record["index"]: right(record) for record in trained}
    for record in base:
        unit = question_of(record, way or "circular")
        rows[unit].append((right(record), after[record["index"]]))
    if way:
        return {u: (all(a for _, a in own) - all(b for b, _ in own), 1) for u, own in rows.items()}
    return {u: (sum(a - b for b, a in own), len(own)) for u, own in rows.items()}


def _by_language(units: Mapping[str, Units], seed: int) -> dict[str, dict[str, Any]]:
    found = {language: _comparison([own], seed) for language, own in units.items()}
    corrected = holm([comparison["p"] for comparison in found.values()])
    for comparison, p in zip(found.values(), corrected, strict=True):
        comparison["p_holm"] = p
    others = [own for language, own in units.items() if language != ENGLISH]
    return found | ({MEAN: _comparison(others, seed)} if others else {})


def _comparison(units: Sequence[Units], seed: int) -> dict[str, Any]:
    """Of one language, or of the mean over several, whose units of one index belong together."""
    indices = sorted(set().union(*units))
    gains, counts = np.array([[own.get(i, (0, 0)) for i in indices] for own in units]).transpose(2, 0, 1)
    change = fmean(int(g.sum()) / int(n.sum()) for g, n in zip(gains, counts, strict=True))
    only_base, only_trained = differing_units(gains, counts)
    low, high = interval(gains, counts, seed) or (None, None)
    return {
        "change": change,
        "low": low,
        "high": high,
        "p": mcnemar(only_base, only_trained),
        "only_base": only_base,
        "only_trained": only_trained,
    }
