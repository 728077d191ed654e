"""The table at the end of a run: accuracy per language before and after, and where the results lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from plast_train.evaluation.accuracies import accuracies, is_circular, percent, points
from plast_train.run_folder import RunFolder, read_json


def final_table(run: RunFolder) -> str:
    """What has been made so far: the accuracies, if evaluated, and the paths."""
    parts = []
    if run.results.exists():
        rule = yaml.safe_load(run.config.read_text(encoding="utf-8"))["evaluate"]["matching"]
        parts += [benchmark_table(name, cells, rule) for name, cells in read_json(run.results).items()]
    made = {"model": run.export, "report": run.report / "index.html", "run folder": run.path}
    width = max(map(len, made))
    parts.append("\n".join(f"{name:{width}}  {path}" for name, path in made.items() if path.exists()))
    return "\n\n".join(parts)


def benchmark_table(name: str, cells: Mapping[str, Any], rule: str) -> str:
    """One line a language, and the mean of those that are not English.

    `cells` is one benchmark of `evaluation/results.json`: language → `n` and each model's scores. Where the
    benchmark is circular, a question counts only if all its rows are answered right.
    """
    circular = is_circular(cells)
    rows = accuracies(cells, rule, circular)
    width = max(map(len, ["language", *rows]))
    counted = "questions right in every order of options" if circular else "rows"
    columns = "   ".join(["  before   after  change"] * 2)
    return "\n".join(
        [
            f"{name}: accuracy in % of {counted}, base model and trained model",
            f"{'':{width}}{'generated answer':>24}   {'option logits':>24}",
            f"{'language':{width}}{columns}",
            *(f"{label:{width}}{_numbers(*row)}" for label, row in rows.items()),
        ]
    )


def _numbers(*shown: float) -> str:
    pairs = shown[:2], shown[2:]
    return "   ".join(f"{percent(old):>8}{percent(new):>8}{points(old, new):>8}" for old, new in pairs)
