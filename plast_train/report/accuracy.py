"""The report's section on accuracy: before and after with intervals and p values; what the replies are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from plast_train.data.languages import ENGLISH
from plast_train.figures.page import Section
from plast_train.figures.tables import NOTHING, Table, publish_table
from plast_train.report.plots import plot_accuracies
from plast_train.report.results import Result
from plast_train.run_folder import RunFolder, slug
from plast_train.scoring.accuracies import (
    BASE,
    COUNTED,
    MEAN,
    TRAINED,
    accuracies,
    counted,
    p_value,
    percent,
    points,
)

# Shares of replies from which another language than the question's is worth mentioning.
NOTABLE = 0.02
_NO_ANSWERS = ("no_match", "empty", "translations")


def accuracy_section(results: Sequence[Result], run: RunFolder) -> Section:
    return Section("accuracy", "Accuracy", [_benchmark(result, run) for result in results])


def _benchmark(result: Result, run: RunFolder) -> dict[str, Any]:
    """What the page shows of it. Every table is written as a file, also one that the page replaces by a
    sentence."""
    figure = f"accuracy-{slug(result.name)}"
    plot_accuracies(result, run.report / figure)
    rules = list(next(iter(result.cells.values()))[BASE]["generated"])
    differing = [way for way in result.ways if _rules_differ(result, way)]
    matching = publish_table(_matching_table(result, rules, [*differing, *result.ways][0]), run.report)
    replies = publish_table(_reply_table(result), run.report)
    return {
        "name": result.name,
        "figure": figure,
        "accuracy": [publish_table(_accuracy_table(result, way), run.report) for way in result.ways],
        "categories": _published_categories(result, run),
        "rules": rules,
        "matching": matching if differing else None,
        "replies": None if has_only_answers(result) else replies,
    }


def _accuracy_table(result: Result, way: str) -> Table:
    rows = []
    for label, row in result.accuracies(way).items():
        cells = [label, result.count(label, way)]
        for pair, score in ((row[:2], "generated"), (row[2:], "option_logits")):
            cells += [percent(pair[0]), percent(pair[1]), points(*pair)]
            cells += interval_and_p(result.comparison(label, score, way))
        rows.append(cells)
    return Table(
        head=["language", "n", *["base", "trained", "change", "95 % from", "to", "p"] * 2],
        rows=rows,
        name=f"accuracy-{slug(result.name)}" + ("" if way == result.ways[0] else f"-{way}"),
        caption=f"{result.name}, accuracy in % of {COUNTED[way]}; generated answers matched by the rule "
        f"{result.rule}.",
        groups=[("", 2), ("generated answers", 6), ("option logits", 6)],
        classes=_mean_is_last(rows),
    )


def _mean_is_last(rows: Sequence[Sequence[str]]) -> dict[int, str]:
    return {len(rows) - 1: "last"} if rows[-1][0] == MEAN else {}


def interval_and_p(comparison: Mapping[str, Any] | None) -> list[str]:
    """Both ends of the interval in points, and p: of a language the one corrected over the languages."""
    if comparison is None:
        return [NOTHING] * 3
    ends = [comparison["low"], comparison["high"]]
    p = p_value(comparison.get("p_holm", comparison["p"]))
    return [*(NOTHING if end is None else f"{100 * end:+.1f}" for end in ends), p]


def _published_categories(result: Result, run: RunFolder) -> Table | None:
    """The page has English and the mean of the others that have the category, the CSV every language. None
    for fewer than two categories."""
    names = sorted({name for cell in result.cells.values() for name in cell[BASE]["categories"]})
    if len(names) < 2:
        return None
    labels = list(result.accuracies())
    on_page = [label for label in (ENGLISH, MEAN) if label in labels]
    in_csv = _category_table(result, names, labels)
    return publish_table(_category_table(result, names, on_page), run.report, in_csv)


def _category_table(result: Result, names: Sequence[str], labels: Sequence[str]) -> Table:
    way, rows = result.ways[0], []
    for name in names:
        cells = {
            language: {model: cell[model]["categories"][name] for model in (BASE, TRAINED)}
            for language, cell in result.cells.items()
            if name in cell[BASE]["categories"]
        }
        shown = accuracies(cells, result.rule, way)
        counts = [counted(cell[BASE], way)["n"] for cell in cells.values()]
        row = [name or "(none)", " to ".join(map(str, sorted({min(counts), max(counts)})))]
        for label in labels:
            before, after, *_ = shown.get(label, (math.nan, math.nan))
            row += [percent(before), percent(after), points(before, after)]
        rows.append(row)
    return Table(
        head=["category", "n", *["base", "trained", "change"] * len(labels)],
        rows=rows,
        name=f"categories-{slug(result.name)}",
        caption=f"{result.name}, accuracy by category in % of {COUNTED[way]}; generated answers matched by "
        f"the rule {result.rule}. n is of one language; every language's accuracy is in the CSV.",
        groups=[("", 2), *((label, 3) for label in labels)],
    )


def _rules_differ(result: Result, way: str) -> bool:
    """Whether a result depends on the rule that matches replies to answers."""
    by_rule = [
        counted(cell[model], way)["generated"] for cell in result.cells.values() for model in (BASE, TRAINED)
    ]
    return any(len(set(own.values())) > 1 for own in by_rule)


def _matching_table(result: Result, rules: Sequence[str], way: str) -> Table:
    by_rule = [accuracies(result.cells, rule, way) for rule in rules]
    rows = []
    for label in by_rule[0]:
        pairs = [own[label][:2] for own in by_rule]
        rows.append([label, *(x for b, a in pairs for x in (percent(b), percent(a), points(b, a)))])
    return Table(
        head=["language", *["base", "trained", "change"] * len(rules)],
        rows=rows,
        name=f"matching-{slug(result.name)}",
        caption=f"{result.name}, generated answers by both rules that match a reply to an answer: accuracy "
        f"in % of {COUNTED[way]}.",
        groups=[("", 1), *((rule, 3) for rule in rules)],
        classes=_mean_is_last(rows),
    )


def has_only_answers(result: Result) -> bool:
    """Whether no reply of either model is unmatched, empty, a translation or in another language."""
    # The shares themselves decide: one that is shown as 0.0 % may still be a reply or two.
    shares = [
        share
        for language, cell in result.cells.items()
        for scores in (cell[BASE], cell[TRAINED])
        for share in (
            *(_share(scores, kind, result.rule) for kind in _NO_ANSWERS),
            *_other_languages(scores, language).values(),
        )
    ]
    return not any(shares)


def _reply_table(result: Result) -> Table:
    """Shares of replies that are no answers, and the languages of replies."""
    rows = []
    for language in (label for label in result.accuracies() if label in result.cells):
        models = [result.cells[language][model] for model in (BASE, TRAINED)]
        row = [language]
        row += [percent(_share(scores, kind, result.rule)) for kind in _NO_ANSWERS for scores in models]
        for scores in models:
            others = _other_languages(scores, language).items()
            row.append(", ".join(f"{c} {percent(s)}" for c, s in others if s >= NOTABLE) or NOTHING)
        rows.append(row)
    return Table(
        head=["language", *["base", "trained"] * 4],
        rows=rows,
        name=f"replies-{slug(result.name)}",
        caption=f"{result.name}, replies in %: that name no option (or, to open questions, are nothing), are "
        "empty, repeat the question or its translation instead of answering; languages of replies other "
        f"than the question's from {NOTABLE:.0%} on (by script and stop words; letters and single words "
        "have none).",
        groups=[("", 1), ("unmatched", 2), ("empty", 2), ("translated", 2), ("other languages", 2)],
    )


def _share(scores: Mapping[str, Any], kind: str, rule: str) -> float:
    return float(scores[kind][rule] if kind == "no_match" else scores[kind])


def _other_languages(scores: Mapping[str, Any], language: str) -> dict[str, float]:
    """Other languages of replies → their share; `und` are those without a language."""
    return {code: share for code, share in scores["reply_languages"].items() if code not in (language, "und")}
