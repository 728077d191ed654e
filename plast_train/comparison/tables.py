"""A comparison as text for the terminal, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from plast_train.comparison.rows import (
    Change,
    Group,
    benchmarks_of,
    by_way,
    changes,
    differences,
    formatting,
    records_of,
)
from plast_train.data.languages import ENGLISH
from plast_train.scoring.accuracies import MEAN, p_value, percent, points

Ways = Mapping[str, Mapping[str, Change]]

_WAY = "generated"
_EXPLAINED = (
    "others: mean of the languages that are not English; logits: its change or difference by option logits.\n"
    "95 %: bootstrap interval of the change over questions, in points.\n"
)
_TESTED = "p: exact McNemar; of en, with Holm's correction over the languages."
_NO_P = (
    "There is no p where seeds are averaged: McNemar's test counts single answers, and the answers of\n"
    "several seeds to one question are not independent. The CSV has the p of each seed alone."
)


def text_table(groups: Sequence[Group]) -> str:
    """What was trained at what cost, then for each benchmark what changed and the accuracy per language."""
    parts = [_aligned(_cost_rows(groups))]
    shown = [group for group in groups if group.outcomes]
    for benchmark in benchmarks_of(groups):
        parts += _benchmark(shown, benchmark)
    if benchmarks_of(groups):
        parts.append(_EXPLAINED + (_NO_P if _averages_seeds(groups) else _TESTED))
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
    """A booktabs table of one benchmark: cost, change of English and of the others' mean, by option logits
    too, and that mean's difference from the first group's, with intervals and p."""
    shown_groups = [group for group in groups if group.outcomes]
    first = shown_groups[0]
    head = ["trained", "layers", r"share (\%)", "time (s)", "memory (GB)", "English", "mean of the others"]
    head += ["by option logits", f"mean, from {_escaped(first.name)}"]
    lines = [r"\begin{tabular}{llrrrrrrr}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    for group in shown_groups:
        ways = by_way(changes, group, benchmark)
        generated, logits = ways[_WAY], ways.get("option_logits", {})
        against = {} if group is first else differences(first, group, benchmark, _WAY)
        shown = [generated.get(ENGLISH), generated.get(MEAN), logits.get(MEAN), against.get(MEAN)]
        cells = [_escaped(group.name), _escaped(group.layers), *_costs(group), *map(_latex_change, shown)]
        if MEAN in formatting(ways):
            cells[6] += " (formatting)"
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


def _benchmark(groups: Sequence[Group], benchmark: str) -> list[str]:
    """What training changed; how far each group is from the first; the accuracy per language."""
    tables = {group.name: by_way(changes, group, benchmark) for group in groups}
    title = f"{benchmark}: accuracy of generated answers in % (and change in points)"
    lines = [title, _aligned(_change_rows(groups, tables, _accuracy))]
    marked = [f"  {name}: {', '.join(found)}" for name, ways in tables.items() if (found := formatting(ways))]
    if marked:
        lines += ["formatting: generated answers gain, option logits do not:", *marked]
    parts = ["\n".join(lines)]
    first, *others = groups
    if others:
        against = {g.name: by_way(partial(differences, first), g, benchmark) for g in others}
        title = f"{benchmark}: difference from {first.name} in points"
        parts.append(f"{title}\n{_aligned(_change_rows(groups, against, _points))}")
    return [*parts, _aligned(_language_rows({name: ways[_WAY] for name, ways in tables.items()}))]


def _change_rows(
    groups: Sequence[Group], tables: Mapping[str, Ways], shown: Callable[[Change], str]
) -> list[list[str]]:
    """English and the mean of the others by generated answers, and that mean by option logits; each with its
    p, or, where seeds are averaged, the least and largest change over the seeds."""
    english, others, logits = (_WAY, ENGLISH), (_WAY, MEAN), ("option_logits", MEAN)
    columns = [
        (ENGLISH, english, shown),
        ("p", english, _p),
        ("others", others, shown),
        ("95 %", others, _interval),
        ("p", others, _p),
        ("seeds", others, _spread),
        ("logits", logits, _points),
        ("95 %", logits, _interval),
        ("p", logits, _p),
    ]
    hidden = "p" if _averages_seeds(groups) else "seeds"
    columns = [column for column in columns if column[0] != hidden]
    rows = [["", *(head for head, _, _ in columns)]]
    for name, ways in tables.items():
        found = [(ways.get(way, {}).get(label), show) for _, (way, label), show in columns]
        rows.append([name, *("–" if change is None else show(change) for change, show in found)])
    return rows


def _averages_seeds(groups: Sequence[Group]) -> bool:
    return any(len(group.outcomes) > 1 for group in groups)


def _language_rows(tables: Mapping[str, Mapping[str, Change]]) -> list[list[str]]:
    """The base's accuracy in each language, then a line for each trained model."""
    first = next(iter(tables.values()))
    rows = [["", *first], ["base", *(percent(change.base) for change in first.values())]]
    return rows + [[name, *(percent(c.trained) for c in found.values())] for name, found in tables.items()]


def _accuracy(change: Change) -> str:
    return f"{percent(change.trained)} ({_points(change)})"


def _points(change: Change) -> str:
    return points(change.base, change.trained)


def _spread(change: Change) -> str:
    return f"{100 * min(change.by_run):+.1f} … {100 * max(change.by_run):+.1f}"


def _p(change: Change) -> str:
    """Of a language the one corrected over the languages."""
    p = change.p if change.p_holm is None else change.p_holm
    return "–" if p is None else p_value(p)


def _interval(change: Change) -> str:
    if change.interval is None:
        return "–"
    low, high = change.interval
    return f"{100 * low:+.1f} … {100 * high:+.1f}"


def _latex_change(change: Change | None) -> str:
    if change is None:
        return "--"
    shown = f"${100 * change.change:+.1f}$"
    if change.interval is not None:
        low, high = change.interval
        shown += f" [${100 * low:+.1f}$, ${100 * high:+.1f}$]"
    if change.p is None:
        return shown
    p = _p(change)
    return f"{shown}, $p{p if p.startswith('<') else f'={p}'}$"


def _escaped(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, r"\textbackslash{}" if character == "\\" else "\\" + character)
    return text.replace("|", r"$\mid$")


def _csv_cell(value: Any) -> Any:
    """Four digits behind the point; a p below that keeps three that say something. Several are joined."""
    if isinstance(value, tuple):
        return " | ".join(map(_csv_cell, value))
    if not isinstance(value, float):
        return value
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    left = {0, *([last] if rows[0][last] == "what" else [])}

    def padded(row: Sequence[str]) -> list[str]:
        cells = enumerate(zip(row, widths, strict=True))
        return [cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in cells]

    return "\n".join("  ".join(padded(row)).rstrip() for row in rows)
