"""Two models' records on one benchmark → what changed, per language and for the mean of the others, with
intervals and p values.

A comparison is `{change, low, high, p, only_base, only_trained}`, accuracies as fractions of 1: the change of
the accuracy, its 95 % bootstrap interval (None where one unit leaves none), the units that just one model has
(more) right, and McNemar's exact p of them. A unit is a question: a row, or all rows of a circular question.
For rows of circular files and for the mean over languages, a unit is one model's if that has more of its rows
right; the test is then the exact sign test, of which McNemar's is the case of one row a unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from plast_train.evaluation.accuracies import ENGLISH, MEAN, headline_rule
from plast_train.evaluation.matching import RULES
from plast_train.evaluation.significance import differing_units, holm, interval, mcnemar

Record = Mapping[str, Any]
Right = Callable[[Record], bool]
# unit → rows that the trained model has right and the base has not, less the reverse; rows
Units = dict[int, tuple[int, int]]


def generated_right(record: Record, rule: str) -> bool:
    """Whether the reply, matched by `rule`, is right; no match, an empty reply and a refusal are wrong."""
    return record["matched"][rule] in (record.get("answers") or [record["answer"]])


def option_logits_right(record: Record) -> bool:
    """Whether the right option's letter has the highest next-token logit; of equals, the first counts."""
    logits = record["option_logits"]
    return bool(max(sorted(logits), key=logits.__getitem__) == record["answer"])


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
    the same over questions whose rows must all be right.
    """
    some = next(iter(base.values()))[0]
    rule = headline_rule(some["matched"], matching)
    languages = sorted(base, key=lambda language: (language != ENGLISH, language))
    scores: dict[str, Right] = {"generated": partial(generated_right, rule=rule)}
    if some["option_logits"] is not None:
        scores["option_logits"] = option_logits_right
    ways = [False, True] if some["group"] is not None else [False]
    found: dict[bool, dict[str, dict[str, Any]]] = {}
    for whole in ways:
        by_score = {
            name: _by_language({x: units_of(base[x], trained[x], right, whole) for x in languages}, seed)
            for name, right in scores.items()
        }
        found[whole] = {label: _joined(by_score, label) for label in by_score["generated"]}
    return {
        label: {"rule": rule, **own, **({"circular": found[True][label]} if True in found else {})}
        for label, own in found[False].items()
    }


def _joined(by_score: Mapping[str, Mapping[str, Any]], label: str) -> dict[str, Any]:
    generated = by_score["generated"][label]
    logits = by_score["option_logits"][label] if "option_logits" in by_score else None
    formatting = logits is not None and is_formatting(generated["low"], logits["low"])
    return {"generated": generated, "option_logits": logits, "formatting": formatting}


def is_formatting(generated: float | None, option_logits: float | None) -> bool:
    """Whether a gain shows in generated answers alone, by the lower ends of the changes' intervals."""
    return (generated or 0) > 0 and (option_logits or 0) <= 0


def units_of(base: Sequence[Record], trained: Sequence[Record], right: Right, whole: bool) -> Units:
    """The gains of each unit, by the index of its question. With `whole` a unit counts as one row, right if
    all its rows are."""
    rows: dict[int, list[tuple[bool, bool]]] = defaultdict(list)
    after = {record["index"]: right(record) for record in trained}
    for record in base:
        unit = record["index"] if record["group"] is None else record["group"]
        rows[unit].append((right(record), after[record["index"]]))
    if whole:
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
