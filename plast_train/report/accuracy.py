"""The report's section on accuracy: before and after with intervals and p values; what the replies are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from plast_train.figures.page import Section, figure, heading, paragraph
from plast_train.figures.tables import NOTHING, Table, file_name, publish_table
from plast_train.report.categories import categories_part
from plast_train.report.plots import plot_accuracies
from plast_train.report.rules import rules_part
from plast_train.run_folder import RunFolder, read_json
from plast_train.scoring.accuracies import (
    BASE,
    COUNTED,
    MEAN,
    TRAINED,
    Accuracies,
    accuracies,
    compared_by,
    counted,
    p_value,
    percent,
    points,
    rule_of,
    ways_of,
)

Comparison = Mapping[str, Any]
SCORES = ("generated", "option_logits")
# Shares of replies from which another language than the question's is worth a line.
NOTABLE = 0.02
_NO_ANSWERS = ("no_match", "empty", "translations")
_EXPLAINED = (
    "Change in percentage points with its 95 % interval (paired bootstrap over questions); p is McNemar's "
    "exact test, for the languages corrected over them (Holm). n counts what an accuracy is a share of."
)


@dataclass(frozen=True)
class Result:
    """One benchmark of `results.json`: language → scores of both models. `compared` is the same benchmark of
    `comparisons.json`, language or mean → comparison; empty where nothing was compared."""

    name: str
    cells: Mapping[str, Any]
    rule: str
    compared: Mapping[str, Any]

    @property
    def ways(self) -> tuple[str, ...]:
        """How questions are counted, the one that the benchmark asks for first."""
        return ways_of(self.cells)

    def accuracies(self, way: str | None = None) -> dict[str, Accuracies]:
        return accuracies(self.cells, self.rule, way or self.ways[0])

    def comparison(self, label: str, score: str, way: str | None = None) -> Comparison | None:
        return compared_by(self.compared.get(label, {}), way or self.ways[0]).get(score)

    def count(self, language: str, way: str) -> str:
        return str(counted(self.cells[language][BASE], way)["n"]) if language in self.cells else ""


def read_results(run: RunFolder, matching: str) -> list[Result]:
    published = run.evaluation / "comparisons.json"
    compared = read_json(published) if published.exists() else {}
    return [
        Result(name, cells, rule_of(cells, matching), compared.get(name, {}))
        for name, cells in read_json(run.results).items()
    ]


def accuracy_section(results: Sequence[Result], run: RunFolder) -> Section:
    if not results:
        body = paragraph("No benchmark was evaluated (evaluate.benchmarks is empty).")
    else:
        body = paragraph(_EXPLAINED) + "".join(_benchmark(result, run) for result in results)
    return Section("accuracy", "Accuracy", body)


def _benchmark(result: Result, run: RunFolder) -> str:
    stem = file_name(result.name)
    plot_accuracies(result, run.report / f"accuracy-{stem}")
    caption = f"{result.name}: accuracy before and after training, and the change with its 95 % interval."
    parts = [heading(result.name), figure(run.report / f"accuracy-{stem}.svg", caption, wide=True)]
    parts += [publish_table(_accuracy_table(result, way), run.report) for way in result.ways]
    parts += [categories_part(result, run), rules_part(result, run), _replies(result, run)]
    return "".join(parts)


def _accuracy_table(result: Result, way: str) -> Table:
    rows = []
    for label, (before, after, logits_before, logits_after) in result.accuracies(way).items():
        row = [label, result.count(label, way)]
        for pair, score in zip(((before, after), (logits_before, logits_after)), SCORES, strict=True):
            row += [percent(pair[0]), percent(pair[1]), points(*pair)]
            row += _interval_and_p(result.comparison(label, score, way))
        rows.append(row)
    head = ["language", "n", *["base", "trained", "change", "95 % from", "to", "p"] * 2]
    return Table(
        f"accuracy-{file_name(result.name)}" + ("" if way == result.ways[0] else f"-{way}"),
        f"{result.name}, accuracy in % of {COUNTED[way]}; generated answers matched by the rule "
        f"{result.rule}.",
        head,
        rows,
        [("", 2), ("generated answers", 6), ("option logits", 6)],
        {len(rows) - 1: "last"} if rows[-1][0] == MEAN else {},
    )


def _interval_and_p(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return [NOTHING] * 3
    ends = [
        NOTHING if end is None else f"{100 * end:+.1f}" for end in (comparison["low"], comparison["high"])
    ]
    return [*ends, _p(comparison)]


def _p(comparison: Comparison) -> str:
    return p_value(comparison.get("p_holm", comparison["p"]))


def _replies(result: Result, run: RunFolder) -> str:
    """The table where it has something to show; its files in any case."""
    shown = publish_table(_reply_table(result), run.report)
    scored = [(language, cell[m]) for language, cell in result.cells.items() for m in (BASE, TRAINED)]
    if not all(_all_answers(language, scores, result.rule) for language, scores in scored):
        return shown
    return paragraph(
        "Every reply is an answer: none is unmatched, empty, a translation or in another language."
    )


def _all_answers(language: str, scores: Mapping[str, Any], rule: str) -> bool:
    """Of one model in one language. Asked of the shares themselves: a rounded 0.0 may be a reply or two."""
    others = {
        code: share for code, share in scores["reply_languages"].items() if code not in (language, "und")
    }
    return not any((*(_share(scores, kind, rule) for kind in _NO_ANSWERS), *others.values()))


def _reply_table(result: Result) -> Table:
    """Shares of replies that are no answers, and the languages of replies."""
    rows = []
    for language in (label for label in result.accuracies() if label in result.cells):
        base, trained = (result.cells[language][model] for model in (BASE, TRAINED))
        row = [language]
        for key in _NO_ANSWERS:
            row += [percent(_share(scores, key, result.rule)) for scores in (base, trained)]
        rows.append([*row, _other_languages(language, base), _other_languages(language, trained)])
    return Table(
        f"replies-{file_name(result.name)}",
        f"{result.name}, replies in %: that name no option (or, to open questions, are nothing), are empty, "
        "repeat the question or its translation instead of answering; languages of replies other than the "
        f"question's from {NOTABLE:.0%} on (by script and stop words; letters and single words have none).",
        ["language", *["base", "trained"] * 4],
        rows,
        [("", 1), ("unmatched", 2), ("empty", 2), ("translated", 2), ("other languages", 2)],
    )


def _share(scores: Mapping[str, Any], key: str, rule: str) -> float:
    value = scores[key]
    return float(value[rule] if key == "no_match" else value)


def _other_languages(language: str, scores: Mapping[str, Any]) -> str:
    shares = scores["reply_languages"].items()
    found = [f"{c} {percent(s)}" for c, s in shares if c not in (language, "und") and s >= NOTABLE]
    return ", ".join(found) or NOTHING


def headlines(results: Sequence[Result]) -> str:
    """One sentence a benchmark: what became of English and of the others."""
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in _sentences(results))


def _sentences(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        shown = result.accuracies()
        told = [_change(result, label, shown[label][:2]) for label in ("en", MEAN) if label in shown]
        yield f"{result.name}: {'; '.join(told)}."


def _change(result: Result, label: str, pair: Sequence[float]) -> str:
    name = {"en": "English", MEAN: "the mean of the other languages"}[label]
    text = f"{name} {percent(pair[0])} → {percent(pair[1])} % ({points(*pair)} points"
    comparison = result.comparison(label, "generated")
    if comparison is None or comparison["low"] is None:
        return f"{text})"
    low, high = (f"{100 * comparison[end]:+.1f}" for end in ("low", "high"))
    p = _p(comparison)
    return f"{text}, 95 % interval {low} to {high}, p {p if p.startswith('<') else f'= {p}'})"
