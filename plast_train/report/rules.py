"""The report's table of the two rules that match replies: whether a result hangs on the rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plast_train.figures.page import paragraph
from plast_train.figures.tables import Table, file_name, publish_table
from plast_train.run_folder import RunFolder
from plast_train.scoring.accuracies import (
    BASE,
    COUNTED,
    MEAN,
    TRAINED,
    accuracies,
    counted,
    percent,
    points,
)

if TYPE_CHECKING:
    from plast_train.report.accuracy import Result


def rules_part(result: Result, run: RunFolder) -> str:
    """The table, by the first way of counting in which the rules differ, or that they do not; its files in
    any case."""
    rules = list(next(iter(result.cells.values()))[BASE]["generated"])
    differing = [way for way in result.ways if _differ(result, way)]
    shown = publish_table(_table(result, rules, [*differing, *result.ways][0]), run.report)
    if differing:
        return shown
    return paragraph(
        f"Both matching rules ({' and '.join(rules)}) give the same accuracies in every language, before "
        "and after training."
    )


def _differ(result: Result, way: str) -> bool:
    by_rule = [
        counted(cell[model], way)["generated"] for cell in result.cells.values() for model in (BASE, TRAINED)
    ]
    return any(len(set(own.values())) > 1 for own in by_rule)


def _table(result: Result, rules: Sequence[str], way: str) -> Table:
    by_rule = [accuracies(result.cells, rule, way) for rule in rules]
    rows = []
    for label in by_rule[0]:
        pairs = [own[label][:2] for own in by_rule]
        numbers = [[percent(before), percent(after), points(before, after)] for before, after in pairs]
        rows.append([label, *(number for own in numbers for number in own)])
    return Table(
        f"matching-{file_name(result.name)}",
        f"{result.name}, generated answers by both rules that match a reply to an answer: accuracy in % of "
        f"{COUNTED[way]}.",
        ["language", *["base", "trained", "change"] * len(rules)],
        rows,
        [("", 1), *((rule, 3) for rule in rules)],
        {len(rows) - 1: "last"} if rows[-1][0] == MEAN else {},
    )
