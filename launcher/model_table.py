"""The table of one model's scores, at the end of `plast evaluate MODEL`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from plast_train.data.languages import ENGLISH
from plast_train.run_folder import RunFolder, read_json
from plast_train.scoring.accuracies import MEAN, counted, percent, ways_of
from plast_train.scoring.records import headline_rule

COLUMNS = ("generated", "logits", "no match", "empty", "repeats")
EXPLAINED = (
    "In % of rows. generated: answers right; logits: right by the option letters' logits; no match: replies\n"
    "that name no option; empty: no reply; repeats: replies that repeat or translate the question instead\n"
    "of answering. circular: in % of questions, right in every order of their options; pairs: in % of\n"
    "questions, a yes/no pair as one that is right if both are."
)


def model_tables(run: RunFolder, model: str, rule: str) -> list[str]:
    """One for each benchmark that the model was evaluated on."""
    tables = [model_table(name, cells, model, rule) for name, cells in read_json(run.results).items()]
    return [*tables, EXPLAINED] if tables else tables


def model_table(name: str, cells: Mapping[str, Any], model: str, rule: str) -> str:
    """One line a language, English first, and the mean of the others; `cells` is one benchmark of
    `evaluation/results.json`."""
    together = [way for way in ways_of(cells, model) if way != "rows"]
    columns = [*COLUMNS, *(column for way in together for column in (way, "and logits"))]
    rows = {
        language: [float(cells[language]["n"]), *_numbers(cells[language][model], rule, together)]
        for language in sorted(cells, key=lambda language: (language != ENGLISH, language))
    }
    others = [row for language, row in rows.items() if language != ENGLISH]
    if others:
        rows[MEAN] = [math.nan, *(fmean(column) for column in list(zip(*others, strict=True))[1:])]
    width = max(map(len, ["language", *rows]))
    lines = [f"{name}: {model}", f"{'language':{width}}{'rows':>6}" + "".join(f"{c:>11}" for c in columns)]
    for label, (count, *shown) in rows.items():
        cells_of_row = "".join(f"{percent(value):>11}" for value in shown)
        lines.append(f"{label:{width}}{'' if math.isnan(count) else int(count):>6}{cells_of_row}")
    return "\n".join(lines)


def _numbers(scores: Mapping[str, Any], rule: str, together: Sequence[str]) -> list[float]:
    """In the order of the columns; NaN where there is no such score."""
    rule = headline_rule(scores["generated"], rule)
    found = [
        scores["generated"][rule],
        scores["option_logits"],
        scores["no_match"][rule],
        scores["empty"],
        scores["translations"],
    ]
    for way in together:
        own = counted(scores, way)
        found += [own["generated"][rule], own["option_logits"]]
    return [math.nan if value is None else value for value in found]
