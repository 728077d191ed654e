"""What the report shows of an evaluation: `evaluation/results.json` and `comparisons.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plast_train.run_folder import RunFolder, read_json
from plast_train.scoring.accuracies import (
    BASE,
    Accuracies,
    accuracies,
    compared_by,
    counted,
    rule_of,
    ways_of,
)


@dataclass(frozen=True)
class Result:
    """One benchmark of `results.json`: language → scores of both models. `rule` matches its replies.
    `compared` is the same benchmark of `comparisons.json`, language or mean → comparison; empty where nothing
    was compared."""

    name: str
    cells: Mapping[str, Any]
    rule: str
    compared: Mapping[str, Any]

    @property
    def ways(self) -> tuple[str, ...]:
        """How questions are counted; the benchmark's own way first."""
        return ways_of(self.cells)

    def accuracies(self, way: str | None = None) -> dict[str, Accuracies]:
        return accuracies(self.cells, self.rule, way or self.ways[0])

    def comparison(self, label: str, score: str, way: str | None = None) -> Mapping[str, Any] | None:
        return compared_by(self.compared.get(label, {}), way or self.ways[0]).get(score)

    def count(self, language: str, way: str) -> str:
        return str(counted(self.cells[language][BASE], way)["n"]) if language in self.cells else ""


def read_results(run: RunFolder, matching: str) -> list[Result]:
    """The run's benchmarks; `matching` is `evaluate.matching`."""
    published = run.evaluation / "comparisons.json"
    compared = read_json(published) if published.exists() else {}
    return [
        Result(name, cells, rule_of(cells, matching), compared.get(name, {}))
        for name, cells in read_json(run.results).items()
    ]
