"""Scores from `predictions/*.jsonl` alone, written without any of the project's code: what `results.json` and
`comparisons.json` say is held against this.

    python tests/recompute_scores.py EVALUATION
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from math import comb
from pathlib import Path
from typing import Any

RULES = ("parrot2024", "vlmevalkit2026")


def recompute(evaluation: Path) -> dict[str, Any]:
    """`{benchmark: {language: {model: {way: {score: accuracy}}, "p": {way: {score: p}}}}}`; ways are `rows`,
    `circular`, `pairs`, `category NAME`, of p the first three; scores are the rules and `option_logits`."""
    table: dict[str, Any] = defaultdict(dict)
    for path in sorted((evaluation / "predictions").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.open(encoding="utf-8")]
        models: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in lines:
            models[line["model"]].append(line)
        cell: dict[str, Any] = {model: ways(own) for model, own in models.items()}
        if len(models) == 2:
            cell["p"] = {
                way: {score: p_value(*models.values(), score, way) for score in (*RULES, "option_logits")}
                for way in cuts(lines)
            }
        table[lines[0]["benchmark"]][lines[0]["language"]] = cell
    return table


def right(line: dict[str, Any], score: str) -> bool:
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
    for score in (*RULES, "option_logits"):
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
    print(json.dumps(recompute(Path(sys.argv[1])), indent=1, ensure_ascii=False))
