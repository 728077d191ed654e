"""The tables of a comparison: as text for the terminal, as CSV, as LaTeX and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from plast_train.comparison.changes import (
    Change,
    Group,
    benchmarks_of,
    by_way,
    changes,
    differences,
    formatting,
)
from plast_train.data.languages import ENGLISH
from plast_train.figures.tables import NOTHING, Latex, Table, to_csv, to_latex, to_text
from plast_train.scoring.accuracies import MEAN, p_value, percent, points

Ways = Mapping[str, Mapping[str, Change]]

_WAY, _LOGITS = "generated", "option_logits"
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
    costs = Table(
        head=["", "layers", "trained %", "time s", "memory GB", "what"],
        rows=[
            [g.name, *([g.layers, *_costs(g)] if g.outcomes else [NOTHING] * 4), g.description]
            for g in groups
        ],
        align="lrrrrl",
    )
    parts = [to_text(costs)]
    evaluated = [group for group in groups if group.outcomes]
    benchmarks = benchmarks_of(groups)
    for benchmark in benchmarks:
        parts += _text_of_benchmark(evaluated, benchmark)
    if benchmarks:
        parts.append(_EXPLAINED + (_NO_P if _averages_seeds(groups) else _TESTED))
    parts += [f"{group.name}: {group.note}" for group in groups if group.note]
    return "\n\n".join(parts)


def _text_of_benchmark(groups: Sequence[Group], benchmark: str) -> list[str]:
    """What training changed; how far each group is from the first; the accuracy per language."""
    tables = {group.name: by_way(changes, group, benchmark) for group in groups}
    seeds = _averages_seeds(groups)
    title = f"{benchmark}: accuracy of generated answers in % (and change in points)"
    lines = [title, _change_table(tables, seeds, lambda c: f"{percent(c.trained)} ({_points(c)})")]
    marked = [f"  {name}: {', '.join(found)}" for name, ways in tables.items() if (found := formatting(ways))]
    if marked:
        lines += ["formatting: generated answers gain, option logits do not:", *marked]
    parts = ["\n".join(lines)]
    first, *others = groups
    if others:
        against = {group.name: by_way(partial(differences, first), group, benchmark) for group in others}
        title = f"{benchmark}: difference from {first.name} in points"
        parts.append(f"{title}\n{_change_table(against, seeds, _points)}")
    generated = {name: ways[_WAY] for name, ways in tables.items()}
    base = generated[first.name]  # the runs were evaluated on the same base, or are refused
    rows = [["base", *(percent(change.base) for change in base.values())]]
    rows += [[name, *(percent(c.trained) for c in found.values())] for name, found in generated.items()]
    return [*parts, to_text(Table(["", *base], rows))]


def _change_table(tables: Mapping[str, Ways], seeds: bool, shown: Callable[[Change], str]) -> str:
    """English and the mean of the others by generated answers, and that mean by option logits; each with its
    p, or, where seeds are averaged, the least and largest change over the seeds."""
    english, others, logits = (_WAY, ENGLISH), (_WAY, MEAN), (_LOGITS, MEAN)
    columns = [
        (ENGLISH, english, shown),
        ("p", english, _p),
        ("others", others, shown),
        ("95 %", others, _interval),
        ("p", others, _p),
        ("seeds", others, lambda c: f"{100 * min(c.by_run):+.1f} … {100 * max(c.by_run):+.1f}"),
        ("logits", logits, _points),
        ("95 %", logits, _interval),
        ("p", logits, _p),
    ]
    columns = [column for column in columns if column[0] != ("p" if seeds else "seeds")]
    rows = []
    for name, ways in tables.items():
        found = [(ways.get(way, {}).get(label), show) for _, (way, label), show in columns]
        rows.append([name, *(NOTHING if change is None else show(change) for change, show in found)])
    return to_text(Table(["", *(head for head, _, _ in columns)], rows))


def _averages_seeds(groups: Sequence[Group]) -> bool:
    return any(len(group.outcomes) > 1 for group in groups)


def _costs(group: Group) -> list[str]:
    """Trained share in %, seconds of training, peak memory in GB."""
    memory = max(outcome.peak_memory for outcome in group.outcomes) / 1e9
    return [f"{100 * group.mean('trained_share'):.2f}", f"{group.mean('seconds'):.0f}", f"{memory:.2f}"]


def _points(change: Change) -> str:
    return points(change.base, change.trained)


def _interval(change: Change) -> str:
    if change.interval is None:
        return NOTHING
    low, high = change.interval
    return f"{100 * low:+.1f} … {100 * high:+.1f}"


def _p(change: Change) -> str:
    """Of a language the p corrected over the languages."""
    p = change.p if change.p_holm is None else change.p_holm
    return NOTHING if p is None else p_value(p)


def latex_table(groups: Sequence[Group], benchmark: str) -> str:
    """One benchmark: cost, change of English and of the others' mean, by option logits too, and that mean's
    difference from the first group's, with intervals and p."""
    evaluated = [group for group in groups if group.outcomes]
    first, rows = evaluated[0], []
    for group in evaluated:
        ways = by_way(changes, group, benchmark)
        generated, logits = ways[_WAY], ways.get(_LOGITS, {})
        against = {} if group is first else differences(first, group, benchmark, _WAY)
        found = [generated.get(ENGLISH), generated.get(MEAN), logits.get(MEAN), against.get(MEAN)]
        cells = [group.name, group.layers, *_costs(group), *map(_latex_change, found)]
        if MEAN in formatting(ways):
            cells[6] = Latex(f"{cells[6]} (formatting)")
        rows.append(cells)
    head = ["trained", "layers", "share (%)", "time (s)", "memory (GB)", "English", "mean of the others"]
    head += ["by option logits", f"mean, from {first.name}"]
    return to_latex(Table(head, rows, align="llrrrrrrr"))


def _latex_change(change: Change | None) -> str:
    if change is None:
        return NOTHING
    shown = f"${100 * change.change:+.1f}$"
    if change.interval is not None:
        low, high = change.interval
        shown += f" [${100 * low:+.1f}$, ${100 * high:+.1f}$]"
    if change.p is not None:
        p = _p(change)
        shown += f", $p{p if p.startswith('<') else f'={p}'}$"
    return Latex(shown)


def page_of_accuracies(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For each benchmark a table of English, the mean of the others, that mean by option logits, and how it
    differs from the first run's; and the runs and languages whose gain is one in form alone."""
    first, shown = groups[0], []
    change = ["change", "95 % from", "to", "p"]
    for benchmark in benchmarks_of(groups):
        rows, in_form = [], []
        for group in groups:
            ways = by_way(changes, group, benchmark)
            english, mean = ways[_WAY].get(ENGLISH), ways[_WAY].get(MEAN)
            rows.append(
                [
                    group.name,
                    *(NOTHING if english is None else percent(english.trained), *_page_change(english)),
                    *(NOTHING if mean is None else percent(mean.trained), *_page_change(mean)),
                    *_page_change(ways.get(_LOGITS, {}).get(MEAN)),
                    *_page_change(differences(first, group, benchmark, _WAY).get(MEAN)),
                ]
            )
            in_form += [f"{group.name} ({language})" for language in formatting(ways)]
        table = Table(
            head=["run", *["trained (%)", *change] * 2, *change * 2],
            rows=rows,
            caption=f"{benchmark}: accuracy of generated answers; changes in percentage points. p is "
            "McNemar's exact test, for English corrected over the languages (Holm).",
            groups=[
                *(("", 1), ("English", 5), (MEAN, 5)),
                *(("mean, option logits", 4), (f"mean, from {first.name}", 4)),
            ],
        )
        shown.append({"table": table, "formatting": in_form})
    return shown


def _page_change(change: Change | None) -> list[str]:
    """The change, both ends of its interval, and p."""
    if change is None:
        return [NOTHING] * 4
    ends = [NOTHING] * 2 if change.interval is None else [f"{100 * end:+.1f}" for end in change.interval]
    return [_points(change), *ends, _p(change)]


def page_of_runs(groups: Sequence[Group]) -> Table:
    columns = {
        "method": "method",
        "modules": "modules",
        "layers": "layers",
        "trained_percent": "trained (%)",
        "steps": "steps",
        "training_seconds": "training (s)",
        "peak_memory_gb": "peak memory (GB)",
    }
    rows = []
    for group in groups:
        values = [_facts(group)[key] for key in columns]
        rows.append([group.name, *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values)])
    caption = "What each run trained, and at what cost."
    return Table(["run", *columns.values()], rows, caption=caption)


def csv_table(groups: Sequence[Group]) -> str:
    """One line for each run or group, benchmark, way of scoring and language; see `_records`."""
    records = list(_records(groups))
    head = list(dict.fromkeys(key for record in records for key in record))
    return to_csv(Table(head, [[_csv_cell(record.get(key)) for key in head] for record in records]))


def _csv_cell(value: Any) -> str:
    """Four digits after the point; a value so small that they would be zeros keeps three significant ones.
    Several values are joined."""
    if isinstance(value, tuple):
        return " | ".join(map(_csv_cell, value))
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _records(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """One flat record for each line, benchmark, way of scoring and language.

    Accuracies are in %, changes in points; `seed_min` and `seed_max` are the least and largest change over
    the seeds; `p` and `p_holm` are as in `Change`, and so is `p_seeds`, its `p_by_run`; `formatting` is `yes`
    where a gain shows in generated answers alone. Differences are from the first group that has a run.
    """
    first = next((group for group in groups if group.outcomes), groups[0])
    for group in groups:
        facts = _facts(group)
        if not group.outcomes:
            yield facts
            continue
        for benchmark in benchmarks_of(groups):
            ways = by_way(changes, group, benchmark)
            in_form = formatting(ways)
            for way, found in ways.items():
                against = differences(first, group, benchmark, way)
                for language, change in found.items():
                    yield {
                        **facts,
                        "benchmark": benchmark,
                        "score": way,
                        "language": language,
                        "base": 100 * change.base,
                        "trained": 100 * change.trained,
                        **_numbers(change, ""),
                        **_numbers(against[language], f"_from_{first.name}"),
                        "formatting": "yes" if way == _WAY and language in in_form else "",
                    }


def _facts(group: Group) -> dict[str, Any]:
    """What is the same in all records of the group."""
    facts: dict[str, Any] = {"name": group.name, "what": group.description, "note": group.note}
    if not group.outcomes:
        return facts
    one = group.outcomes[0]
    return facts | {
        "runs": len(group.outcomes),
        "method": one.method,
        "modules": one.modules,
        "layers": group.layers,
        "trained_parameters": round(group.mean("trained_parameters")),
        "trained_percent": 100 * group.mean("trained_share"),
        "steps": one.steps,
        "training_seconds": group.mean("seconds"),
        "peak_memory_gb": max(o.peak_memory for o in group.outcomes) / 1e9,
    }


def _numbers(change: Change, suffix: str) -> dict[str, Any]:
    low, high = change.interval or (math.nan, math.nan)
    numbers = {"change": change.change, "low": low, "high": high}
    numbers |= {"seed_min": min(change.by_run), "seed_max": max(change.by_run)}
    shown: dict[str, Any] = {f"{key}{suffix}": 100 * value for key, value in numbers.items()}
    shown |= {f"p{suffix}": change.p, f"p_holm{suffix}": change.p_holm}
    return shown | ({f"p_seeds{suffix}": change.p_by_run} if change.p_by_run else {})
