"""The table at the end of a run: accuracy per language before and after, and where the results lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from plast_train.run_folder import RunFolder, read_json
from plast_train.scoring.accuracies import (
    COUNTED,
    accuracies,
    compared_by,
    p_value,
    percent,
    points,
    rule_of,
    ways_of,
)

_EXPLAINED = (
    "95 %: bootstrap interval of the change, in points.\n"
    "p: exact McNemar; of languages, with Holm's correction."
)


def final_table(run: RunFolder) -> str:
    """What has been made so far: the accuracies, if evaluated, and the paths."""
    parts = []
    if run.results.exists():
        rule = yaml.safe_load(run.config.read_text(encoding="utf-8"))["evaluate"]["matching"]
        parts += benchmark_tables(run, rule)
    made = {"model": run.export, "report": run.report / "index.html", "run folder": run.path}
    parts.append(listed_paths(made))
    return "\n\n".join(parts)


def listed_paths(paths: Mapping[str, Any]) -> str:
    """Those that are there, one a line."""
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
    return [*tables, _EXPLAINED] if tables and compared else tables


def benchmark_table(
    name: str, cells: Mapping[str, Any], rule: str, compared: Mapping[str, Any] | None = None
) -> str:
    """One line a language, and the mean of those that are not English; at most 100 columns wide. Where there
    are yes/no pairs, the same again with each pair counted as one.

    `cells` is one benchmark of `evaluation/results.json`: language → `n` and each model's scores; `compared`
    the same one of `comparisons.json`. Where the benchmark is circular, a question counts only if all its
    rows are answered right.
    """
    first, *others = ways_of(cells)
    ways = [first, *(way for way in others if way == "pairs")]
    return "\n\n".join(_table(name, cells, rule, compared or {}, way) for way in ways)


def _table(name: str, cells: Mapping[str, Any], rule: str, compared: Mapping[str, Any], way: str) -> str:
    rows = accuracies(cells, rule_of(cells, rule), way)
    width = max(map(len, ["language", *rows]))
    columns = "before after change" + ("         95 %     p" if compared else "")
    lines = [
        f"{name}: accuracy in % of {COUNTED[way]}, base model and trained model",
        f"{'':{width}} {'generated answers':>{len(columns)}}  {'option logits':>{len(columns)}}",
        f"{'language':{width}} {columns}  {columns}",
    ]
    formatting = []
    for label, row in rows.items():
        shown = compared_by(compared.get(label, {}), way)
        left = _numbers(row[:2], shown.get("generated"))
        right = _numbers(row[2:], shown.get("option_logits"))
        lines.append(f"{label:{width}} {left}  {right}".rstrip())
        if shown.get("formatting"):
            formatting.append(label)
    return "\n".join(lines + _formatting(formatting))


def _formatting(labels: Sequence[str]) -> list[str]:
    listed = ", ".join(labels)
    return [f"formatting: generated answers gain, option logits do not: {listed}"] if listed else []


def _numbers(shown: Sequence[float], comparison: Mapping[str, Any] | None) -> str:
    before, after = shown
    text = f"{percent(before):>6}{percent(after):>6}{points(before, after):>7}"
    if not comparison:
        return text
    low, high = comparison["low"], comparison["high"]
    interval = "" if low is None else f"{100 * low:+.1f} {100 * high:+.1f}"
    p = p_value(comparison.get("p_holm", comparison["p"]))
    return f"{text}{interval:>13}{p:>6}"
