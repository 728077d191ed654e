"""The accuracies of `evaluation/results.json` as the tables show them: before and after, per language."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from plast_train.data.languages import ENGLISH, english_first
from plast_train.scoring.records import BASE, MEAN, TRAINED, headline_rule

# Generated answers before and after, option logits before and after (NaN for open questions); fractions of 1.
Accuracies = tuple[float, ...]

# Way of counting → what its accuracies are a share of.
COUNTED = {
    "rows": "rows",
    "circular": "questions right in every order of their options",
    "pairs": "questions, a yes/no pair as one",
}


def ways_of(cells: Mapping[str, Any], model: str = BASE) -> tuple[str, ...]:
    """The ways in which a benchmark's answers are counted, the one that it asks for first; `cells` as below.
    Yes/no pairs are scored together beside the rows, as MMMB leaves open."""
    if all("circular" in cell[model] for cell in cells.values()):
        return ("circular", "rows")
    return ("rows", "pairs") if any("pairs" in cell[model] for cell in cells.values()) else ("rows",)


def counted(scores: Mapping[str, Any], way: str) -> Mapping[str, Any]:
    """The scores of one model in one language by one of `ways_of`; a language without pairs has its rows."""
    found: Mapping[str, Any] = scores.get(way, scores)
    return found


def compared_by(comparison: Mapping[str, Any], way: str) -> Mapping[str, Any]:
    """The part of a language's comparison (`comparisons.compare`) that counts in this way; may be empty."""
    found: Mapping[str, Any] = comparison if way == "rows" else comparison.get(way, {})
    return found


def rule_of(cells: Mapping[str, Any], requested: str) -> str:
    """The rule that the benchmark's generated answers are matched by: `requested` (evaluate.matching) for
    multiple choice, its own for open questions; `cells` as below."""
    return headline_rule(next(iter(cells.values()))[BASE]["generated"], requested)


def accuracies(cells: Mapping[str, Any], rule: str, way: str = "rows") -> dict[str, Accuracies]:
    """English first, the mean of the other languages last, where there are any.

    `cells` is one benchmark of the file: language → `n` and each model's scores. `rule` names how generated
    answers are matched, `way` (of `ways_of`) how they are counted.
    """
    rows: dict[str, Accuracies] = {}
    for language in english_first(cells):
        scores = [counted(cells[language][model], way) for model in (BASE, TRAINED)]
        generated = (s["generated"][rule] for s in scores)
        logits = (math.nan if s["option_logits"] is None else s["option_logits"] for s in scores)
        rows[language] = (*generated, *logits)
    others = [row for language, row in rows.items() if language != ENGLISH]
    return rows | {MEAN: tuple(map(fmean, zip(*others, strict=True)))} if others else rows


def percent(fraction: float) -> str:
    """A dash for NaN."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def p_value(p: float) -> str:
    """Three digits, as in `.042`."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def points(before: float, after: float) -> str:
    """A change in percentage points, with its sign; a dash for NaN."""
    return "–" if math.isnan(after - before) else f"{100 * (after - before):+.1f}"
