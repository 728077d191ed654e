"""Scores from `predictions/*.jsonl` and the benchmarks' TSV files, written without any of the project's code:
what `results.json` and `comparisons.json` say is held against this. Of multiple choice, which option a reply
names is taken from the predictions.

    python tests/recompute_scores.py EVALUATION BENCHMARK.tsv …
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

RULES = ("parrot2024", "vlmevalkit2026")


def recompute(evaluation: Path, tables: Sequence[Path]) -> dict[str, Any]:
    """`{benchmark: {language: {model: {way: {score: accuracy}}, "p": {way: {score: p}}}}}`; ways are `rows`,
    `circular`, `pairs`, `category NAME`, of p the first three; scores are the rules and `option_logits`. Of
    each model also `shares`: `empty` and, by rule, `no_match`."""
    table: dict[str, Any] = defaultdict(dict)
    for path in sorted((evaluation / "predictions").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.open(encoding="utf-8")]
        file = f"{lines[0]['benchmark']}_{lines[0]['language'].replace('zh', 'cn')}.tsv"
        pairs = next((pairs_of(t) for t in tables if t.name == file), {})
        lines = [line | {"pair": pairs.get(line["index"])} for line in lines]
        models: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in lines:
            models[line["model"]].append(line)
        cell: dict[str, Any] = {model: ways(own) for model, own in models.items()}
        if len(models) == 2:
            cell["p"] = {
                way: {score: p_value(*models.values(), score, way) for score in scores_of(lines)}
                for way in cuts(lines)
            }
        for model, own in models.items():
            cell[model]["shares"] = shares(own)
        table[lines[0]["benchmark"]][lines[0]["language"]] = cell
    return table


def pairs_of(table: Path) -> dict[int, int]:
    """Index → smaller index of the two rows about one image that have the same two options, one with each as
    the right answer."""
    head, *rows = (line.split("\t") for line in table.read_text(encoding="utf-8").splitlines())
    cells = [{name: cell for name, cell in zip(head, row, strict=True) if cell} for row in rows]
    images = {row["index"]: row["image"] for row in cells}
    found: dict[int, int] = {}
    for at, row in enumerate(cells):
        for other in cells[at + 1 :]:
            one, two = int(row["index"]), int(other["index"])
            texts = [{x: r[x] for x in "ABCD" if x in r} for r in (row, other)]
            alike = len(texts[0]) == 2 and sorted(texts[0].values()) == sorted(texts[1].values())
            image, its = (images.get(r["image"], r["image"]) for r in (row, other))
            opposite = texts[0][row["answer"]] != texts[1][other["answer"]]
            if alike and image == its and opposite and not {one, two} & found.keys():
                found |= {one: min(one, two), two: min(one, two)}
    return found


def scores_of(lines: list[dict[str, Any]]) -> list[str]:
    return [*lines[0]["matched"], *(["option_logits"] if lines[0]["option_logits"] else [])]


def shares(lines: list[dict[str, Any]]) -> dict[str, Any]:
    def unmatched(line: dict[str, Any], rule: str) -> bool:
        return line["matched"][rule] is None if line["option_logits"] else line["prediction"] == ""

    return {
        "empty": sum(line["prediction"] == "" for line in lines) / len(lines),
        "no_match": {r: sum(unmatched(x, r) for x in lines) / len(lines) for r in lines[0]["matched"]},
    }


def plain(text: str, rule: str) -> str:
    """What of an open question's answer is compared."""
    text = unicodedata.normalize("NFC", text).strip()
    if rule == "maxm":
        return text
    kept = [" " if unicodedata.category(c)[0] == "P" else c for c in text.casefold()]
    return " ".join("".join(kept).split())


def right(line: dict[str, Any], score: str) -> bool:
    if line["answers"]:
        said = plain(line["prediction"], score)
        return said != "" and said in [plain(answer, score) for answer in line["answers"]]
    if score != "option_logits":
        return line["matched"][score] == line["answer"]
    best = max(line["option_logits"].values())
    first = next(x for x in sorted(line["option_logits"]) if line["option_logits"][x] == best)
    return first == line["answer"]


def cuts(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Way → what a line counts in."""
    cut: dict[str, Any] = {"rows": lambda line: line["index"]}
    if max(line["index"] for line in lines) >= 10**6:
        cut["circular"] = lambda line: line["index"] % 10**6
    if any(line["pair"] is not None for line in lines):
        cut["pairs"] = lambda line: line["index"] if line["pair"] is None else line["pair"]
    return cut


def ways(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found = {name: accuracies(lines, key) for name, key in cuts(lines).items()}
    for category in {line["category"] for line in lines}:
        own = [line for line in lines if line["category"] == category]
        found[f"category {category}"] = accuracies(own, cuts(own)["rows"])
    return found


def accuracies(lines: list[dict[str, Any]], key: Any) -> dict[str, float]:
    found = {}
    for score in scores_of(lines):
        units: dict[int, bool] = {}
        for line in lines:
            units[key(line)] = units.get(key(line), True) and right(line, score)
        found[score] = sum(units.values()) / len(units)
    return found


def p_value(base: list[dict[str, Any]], trained: list[dict[str, Any]], score: str, way: str) -> float:
    """McNemar's exact test over questions: twice the binomial's smaller tail. For rows of circular questions
    by the sign of the rows gained."""
    cut = cuts(base)
    key = cut.get("circular", cut["rows"]) if way == "rows" else cut[way]
    count = sum if way == "rows" else all
    units = {key(line) for line in base}
    before, after = (
        {unit: count(right(line, score) for line in lines if key(line) == unit) for unit in units}
        for lines in (base, trained)
    )
    b, c = (sum(sign * after[u] > sign * before[u] for u in units) for sign in (-1, 1))
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    return min(1.0, 2 * tail)


if __name__ == "__main__":
    found = recompute(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    print(json.dumps(found, indent=1, ensure_ascii=False))
