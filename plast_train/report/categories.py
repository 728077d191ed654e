"""The report's table of accuracy by category: what a benchmark's change is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from plast_train.data.languages import ENGLISH
from plast_train.figures.tables import Table, file_name, publish_table
from plast_train.run_folder import RunFolder
from plast_train.scoring.accuracies import BASE, COUNTED, MEAN, TRAINED, accuracies, counted, percent, points

if TYPE_CHECKING:
    from plast_train.report.accuracy import Result


def categories_part(result: Result, run: RunFolder) -> str:
    """English and the mean of the others that have the category; every language is in the CSV. Nothing for
    fewer than two categories."""
    names = sorted({name for cell in result.cells.values() for name in cell[BASE]["categories"]})
    if len(names) < 2:
        return ""
    labels = list(result.accuracies())
    in_page = [label for label in (ENGLISH, MEAN) if label in labels]
    return publish_table(_table(result, names, in_page), run.report, _table(result, names, labels))


def _table(result: Result, names: Iterable[str], labels: list[str]) -> Table:
    way = result.ways[0]
    return Table(
        f"categories-{file_name(result.name)}",
        f"{result.name}, accuracy by category in % of {COUNTED[way]}; generated answers matched by the rule "
        f"{result.rule}. n is of one language; every language's accuracy is in the CSV.",
        ["category", "n", *["base", "trained", "change"] * len(labels)],
        [_row(name, _of_category(result, name), labels, result.rule, way) for name in names],
        [("", 2), *((label, 3) for label in labels)],
    )


def _of_category(result: Result, name: str) -> dict[str, Any]:
    """Language → both models' scores on this category, where the language has it."""
    return {
        language: {model: cell[model]["categories"][name] for model in (BASE, TRAINED)}
        for language, cell in result.cells.items()
        if name in cell[BASE]["categories"]
    }


def _row(name: str, cells: Mapping[str, Any], labels: Iterable[str], rule: str, way: str) -> list[str]:
    shown = accuracies(cells, rule, way)
    counts = [counted(cell[BASE], way)["n"] for cell in cells.values()]
    row = [name or "(none)", " to ".join(map(str, sorted({min(counts), max(counts)})))]
    for label in labels:
        before, after, *_ = shown.get(label, (math.nan, math.nan))
        row += [percent(before), percent(after), points(before, after)]
    return row
