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

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np

from plast_train.data.languages import ENGLISH, english_first
from plast_train.scoring.records import (
    MEAN,
    Record,
    Right,
    by_benchmark,
    by_question,
    headline_rule,
    right_by_score,
    way_together,
)
from plast_train.scoring.significance import differing_units, holm, interval, mcnemar
from plast_train.tasks.matching import RULES

# unit → rows that the trained model has right and the base has not, less the reverse; rows
Units = dict[int, tuple[int, int]]


def compare_all(records: Iterable[Record], base: str, trained: str, matching: str) -> dict[str, Any]:
    """`{benchmark: {language or "mean of the others": comparison}}` of the models of these names; for the
    comparison see `compare`."""
    return {
        benchmark: compare(
            {language: models[base] for language, models in languages.items()},
            {language: models[trained] for language, models in languages.items()},
            matching,
        )
        for benchmark, languages in by_benchmark(records).items()
    }


def compare(
    base: Mapping[str, Sequence[Record]],
    trained: Mapping[str, Sequence[Record]],
    matching: str = RULES[0],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """The comparisons of one benchmark: each language, English first, then the mean of the others.

    `base` and `trained`: language → records of the same rows. For each there is `rule`; `generated` and
    `option_logits` (None for open questions), each a comparison, those of a language with `p_holm`, its p
    corrected over the languages; `formatting` (`is_formatting`). A circular benchmark adds `circular`, the
    same over questions whose rows must all be right; one with yes/no pairs `pairs`, where both must be.
    """
    some = next(iter(base.values()))[0]
    together = way_together(chain.from_iterable(base.values()))
    table: dict[str, dict[str, Any]] = {}
    for way in dict.fromkeys([None, together]):
        by_score = {
            score: _by_language(
                {x: _units(base[x], trained[x], right, way) for x in english_first(base)}, seed
            )
            for score, right in right_by_score(some, matching).items()
        }
        for label, generated in by_score["generated"].items():
            logits = by_score.get("option_logits", {}).get(label)
            formatting = logits is not None and is_formatting(generated["low"], logits["low"])
            found = {"generated": generated, "option_logits": logits, "formatting": formatting}
            if way is None:
                table[label] = {"rule": headline_rule(some["matched"], matching), **found}
            else:
                table[label][way] = found
    return table


def is_formatting(generated: float | None, option_logits: float | None) -> bool:
    """Whether a gain is one in the form of answers alone, by the lower ends of the changes' intervals: above
    0 in generated answers, but not in option logits, which need no reply in the right form."""
    return (generated or 0) > 0 and (option_logits or 0) <= 0


def _units(base: Sequence[Record], trained: Sequence[Record], right: Right, way: str | None) -> Units:
    """The gains of each unit, by the index of its question. With a way of `TOGETHER` a unit counts as one
    row, right if all its rows are."""
    trained_right = {record["index"]: right(record) for record in trained}
    units = {}
    # Rows of a circular question are one text in other orders, so also row by row they form one unit.
    for unit, rows in by_question(base, way or "circular").items():
        before, after = [right(row) for row in rows], [trained_right[row["index"]] for row in rows]
        units[unit] = (all(after) - all(before), 1) if way else (sum(after) - sum(before), len(rows))
    return units


def _by_language(units: Mapping[str, Units], seed: int) -> dict[str, dict[str, Any]]:
    found = {language: _comparison([own], seed) for language, own in units.items()}
    # Holm's family is the languages; their mean is one question of its own.
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
