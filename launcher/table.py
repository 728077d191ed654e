"""The tables that a command prints last: accuracies per language, of a base and its trained model or of one
model, and where the results are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from plast_train.data.languages import ENGLISH
from plast_train.run_folder import RunFolder, read_json
from plast_train.scoring.accuracies import (
    COUNTED,
    MEAN,
    accuracies,
    compared_by,
    counted,
    headline_rule,
    p_value,
    percent,
    points,
    rule_of,
    ways_of,
)

_COMPARISON_NOTE = (
    "95 %: bootstrap interval of the change, in points.\n"
    "p: exact McNemar; of languages, with Holm's correction."
)
_MODEL_COLUMNS = ("generated", "logits", "no match", "empty", "repeats")
_MODEL_NOTE = (
    "In % of rows. generated: answers right; logits: right by the option letters' logits; no match: replies\n"
    "that name no option; empty: no reply; repeats: replies that repeat or translate the question instead\n"
    "of answering. circular: in % of questions, right in every order of their options; pairs: in % of\n"
    "questions, a yes/no pair as one that is right if both are."
)


def final_table(run: RunFolder) -> str:
    """What exists so far: the accuracies, if evaluated, and the paths."""
    parts = []
    if run.results.exists():
        # Without pydantic's checks: the run folder may be another version's.
        rule = yaml.safe_load(run.config.read_text(encoding="utf-8"))["evaluate"]["matching"]
        parts += benchmark_tables(run, rule)
    made = {"model": run.export, "report": run.report / "index.html", "run folder": run.path}
    parts.append(listed_paths(made))
    return "\n\n".join(parts)


def listed_paths(paths: Mapping[str, Path]) -> str:
    """Those that exist, one a line."""
    width = max(map(len, paths))
    return "\n".join(f"{name:{width}}  {path}" for name, path in paths.items() if path.exists())


def benchmark_tables(run: RunFolder, rule: str) -> list[str]:
    """One for each benchmark that the run's base and trained model were evaluated on."""
    file = run.evaluation / "comparisons.json"
    compared = read_json(file) if file.exists() else {}
    tables = [
        benchmark_table(name, cells, rule, compared.get(name, {}))
        for name, cells in read_json(run.results).items()
    ]
    return [*tables, _COMPARISON_NOTE] if tables and compared else tables


def benchmark_table(
    name: str, cells: Mapping[str, Any], rule: str, compared: Mapping[str, Any] | None = None
) -> str:
    """One line a language, and the mean of those that are not English; at most 100 columns wide. Where there
    are yes/no pairs, a second table counts each pair as one.

    `cells` is one benchmark of `evaluation/results.json`: language → `n` and each model's scores; `compared`
    the same one of `comparisons.json`. Where the benchmark is circular, a question counts only if all its
    rows are answered right.
    """
    first, *others = ways_of(cells)
    ways = [first, *(way for way in others if way == "pairs")]
    return "\n\n".join(_comparison(name, cells, rule, compared or {}, way) for way in ways)


def _comparison(name: str, cells: Mapping[str, Any], rule: str, compared: Mapping[str, Any], way: str) -> str:
    rows = accuracies(cells, rule_of(cells, rule), way)
    width = max(map(len, ["language", *rows]))
    columns = "before after change" + ("         95 %     p" if compared else "")
    lines = [
        f"{name}: accuracy in % of {COUNTED[way]}, base model and trained model",
        f"{'':{width}} {'generated answers':>{len(columns)}}  {'option logits':>{len(columns)}}",
        f"{'language':{width}} {columns}  {columns}",
    ]
    # Where the logits, which need no format, do not gain, the model may only have learned how to answer.
    formatting = []
    for label, row in rows.items():
        tested = compared_by(compared.get(label, {}), way)
        generated = _before_and_after(row[:2], tested.get("generated"))
        logits = _before_and_after(row[2:], tested.get("option_logits"))
        lines.append(f"{label:{width}} {generated}  {logits}".rstrip())
        if tested.get("formatting"):
            formatting.append(label)
    if formatting:
        listed = ", ".join(formatting)
        lines.append(f"formatting: generated answers gain, option logits do not: {listed}")
    return "\n".join(lines)


def _before_and_after(pair: Sequence[float], comparison: Mapping[str, Any] | None) -> str:
    before, after = pair
    text = f"{percent(before):>6}{percent(after):>6}{points(before, after):>7}"
    if not comparison:
        return text
    low, high = comparison["low"], comparison["high"]
    interval = "" if low is None else f"{100 * low:+.1f} {100 * high:+.1f}"
    p = p_value(comparison.get("p_holm", comparison["p"]))
    return f"{text}{interval:>13}{p:>6}"


def model_tables(run: RunFolder, model: str, rule: str) -> list[str]:
    """One for each benchmark that the model was evaluated on."""
    tables = [model_table(name, cells, model, rule) for name, cells in read_json(run.results).items()]
    return [*tables, _MODEL_NOTE] if tables else tables


def model_table(name: str, cells: Mapping[str, Any], model: str, rule: str) -> str:
    """One line a language, English first, and the mean of the others; `cells` as in `benchmark_table`."""
    together = [way for way in ways_of(cells, model) if way != "rows"]
    columns = [*_MODEL_COLUMNS, *(column for way in together for column in (way, "and logits"))]
    rows = {
        language: _scores(cells[language][model], rule, together)
        for language in sorted(cells, key=lambda language: (language != ENGLISH, language))
    }
    counts = {language: str(cells[language]["n"]) for language in rows}
    others = [row for language, row in rows.items() if language != ENGLISH]
    if others:
        rows[MEAN] = [fmean(column) for column in zip(*others, strict=True)]
    width = max(map(len, ["language", *rows]))
    lines = [f"{name}: {model}", f"{'language':{width}}{'rows':>6}" + "".join(f"{c:>11}" for c in columns)]
    for label, row in rows.items():
        numbers = "".join(f"{percent(value):>11}" for value in row)
        lines.append(f"{label:{width}}{counts.get(label, ''):>6}{numbers}")
    return "\n".join(lines)


def _scores(scores: Mapping[str, Any], rule: str, together: Sequence[str]) -> list[float]:
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
