"""The table at the end of a run: accuracy per language before and after, and where the results lie."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import yaml

from plast_train.run_folder import RunFolder, read_json

BEFORE, AFTER, ENGLISH = "base", "plast", "en"
MEAN = "mean of the others"

# generated answers before and after, option logits before and after; fractions of 1
Accuracies = tuple[float, float, float, float]


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
    circular = any("circular" in cell[BEFORE] for cell in cells.values())
    rows = {language: _accuracies(cell, rule) for language, cell in _english_first(cells).items()}
    others = [row for language, row in rows.items() if language != ENGLISH]
    if others:
        rows[MEAN] = tuple(map(fmean, zip(*others, strict=True)))  # type: ignore[assignment]
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


def _english_first(cells: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(cells.items(), key=lambda item: (item[0] != ENGLISH, item[0])))


def _accuracies(cell: Mapping[str, Any], rule: str) -> Accuracies:
    before, after = (cell[model].get("circular", cell[model]) for model in (BEFORE, AFTER))
    return (
        before["generated"][rule],
        after["generated"][rule],
        before["option_logits"],
        after["option_logits"],
    )


def _numbers(*accuracies: float) -> str:
    generated, logits = accuracies[:2], accuracies[2:]
    return "   ".join(
        f"{100 * before:8.1f}{100 * after:8.1f}{100 * (after - before):+8.1f}"
        for before, after in (generated, logits)
    )
