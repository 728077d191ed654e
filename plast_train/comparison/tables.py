"""A comparison as text for the terminal, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from plast_train.comparison.rows import Change, Group, benchmarks_of, changes, difference, records_of
from plast_train.evaluation.accuracies import ENGLISH, MEAN, percent, points

_WAY = "generated"


def text_table(groups: Sequence[Group]) -> str:
    """What was trained at what cost, then for each benchmark what changed and the accuracy per language."""
    parts = [_aligned(_cost_rows(groups))]
    shown = [group for group in groups if group.outcomes]
    for benchmark in benchmarks_of(groups):
        title = f"{benchmark}: accuracy of generated answers in % (and change in points)"
        parts.append(f"{title}\n{_aligned(_change_rows(shown, benchmark))}")
        parts.append(_aligned(_language_rows(shown, benchmark)))
    parts += [f"{group.name}: {group.note}" for group in groups if group.note]
    return "\n\n".join(parts)


def csv_table(groups: Sequence[Group]) -> str:
    """One line for each run or group, benchmark, way of scoring and language; see `rows.records_of`."""
    records = list(records_of(groups))
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(k for r in records for k in r)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _csv_cell(value) for key, value in record.items()} for record in records)
    return file.getvalue()


def latex_table(groups: Sequence[Group], benchmark: str) -> str:
    """A booktabs table of one benchmark: cost, change of English and of the others' mean, with intervals."""
    lines = [
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        r"trained & layers & share (\%) & time (s) & memory (GB) & English & mean of the others \\",
        r"\midrule",
    ]
    for group in (g for g in groups if g.outcomes):
        found = changes(group, benchmark, _WAY)
        cells = [_escaped(group.name), _escaped(group.layers), *_costs(group)]
        cells += [_latex_change(found.get(name)) for name in (ENGLISH, MEAN)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _cost_rows(groups: Sequence[Group]) -> list[list[str]]:
    rows = [["", "layers", "trained %", "time s", "memory GB", "what"]]
    for group in groups:
        costs = _costs(group) if group.outcomes else ["–"] * 3
        layers = group.layers if group.outcomes else "–"
        rows.append([group.name, layers, *costs, group.shows])
    return rows


def _costs(group: Group) -> list[str]:
    """Trained share in %, seconds of training, peak memory in GB."""
    memory = max(outcome.peak_memory for outcome in group.outcomes) / 1e9
    return [f"{100 * group.mean('trained_share'):.2f}", f"{group.mean('seconds'):.0f}", f"{memory:.2f}"]


def _change_rows(groups: Sequence[Group], benchmark: str) -> list[list[str]]:
    """English and the mean of the others: accuracy and change, the mean's interval and spread over the seeds,
    and how far it is from the first group's."""
    several = any(len(group.outcomes) > 1 for group in groups)
    against_first = [f"from {groups[0].name}", "95 %"] if groups[1:] else []
    rows = [["", ENGLISH, MEAN, "95 %", *(["seeds"] if several else []), *against_first]]
    for group in groups:
        found = changes(group, benchmark, _WAY)
        shown = [found.get(name) for name in (ENGLISH, MEAN)]
        cells = ["–" if c is None else f"{percent(c.trained)} ({points(c.base, c.trained)})" for c in shown]
        mean = shown[1]
        cells.append("–" if mean is None else _interval(mean))
        if several:
            spread = [] if mean is None else [100 * min(mean.by_run), 100 * max(mean.by_run)]
            cells.append(" … ".join(f"{value:+.1f}" for value in spread))
        if against_first:
            against = None if group is groups[0] else difference(group, groups[0], benchmark, _WAY)
            cells += ["", ""] if against is None else [f"{100 * against.change:+.1f}", _interval(against)]
        rows.append([group.name, *cells])
    return rows


def _language_rows(groups: Sequence[Group], benchmark: str) -> list[list[str]]:
    """The base's accuracy in each language, then a line for each trained model."""
    tables = {group.name: changes(group, benchmark, _WAY) for group in groups}
    first = next(iter(tables.values()))
    rows = [["", *first], ["base", *(percent(change.base) for change in first.values())]]
    return rows + [[name, *(percent(c.trained) for c in found.values())] for name, found in tables.items()]


def _interval(change: Change) -> str:
    if change.interval is None:
        return "–"
    low, high = change.interval
    return f"{100 * low:+.1f} … {100 * high:+.1f}"


def _latex_change(change: Change | None) -> str:
    if change is None:
        return "--"
    shown = f"${100 * change.change:+.1f}$"
    if change.interval is None:
        return shown
    low, high = change.interval
    return f"{shown} [${100 * low:+.1f}$, ${100 * high:+.1f}$]"


def _escaped(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, r"\textbackslash{}" if character == "\\" else "\\" + character)
    return text.replace("|", r"$\mid$")


def _csv_cell(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    left = {0, *([last] if rows[0][last] == "what" else [])}

    def padded(row: Sequence[str]) -> list[str]:
        cells = enumerate(zip(row, widths, strict=True))
        return [cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in cells]

    return "\n".join("  ".join(padded(row)).rstrip() for row in rows)
