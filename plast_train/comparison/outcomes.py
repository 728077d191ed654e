"""What came out of a finished run: what it trained, at what cost, and every answer before and after."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from plast_train.data.languages import ENGLISH, english_first
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, read_json
from plast_train.scoring.accuracies import BASE, TRAINED
from plast_train.scoring.records import generated_right, option_logits_right
from plast_train.stages import is_benchmark, is_current

Floats = NDArray[np.float64]

WAYS = ("generated", "option_logits")


@dataclass(frozen=True)
class Answers:
    """One benchmark, `[languages, units]`: 1 where a unit is answered right, 0 where wrong, NaN where the
    language lacks it. A unit is a row, or in a circular benchmark a question with all its rows."""

    languages: tuple[str, ...]
    units: tuple[int, ...]
    base: Floats
    trained: Floats
    circular: bool

    @property
    def others(self) -> list[int]:
        """Which languages are not English."""
        return [i for i, language in enumerate(self.languages) if language != ENGLISH]


@dataclass(frozen=True)
class Outcome:
    """A run. `answers` is benchmark → way of scoring → answers; `seconds` those of the optimizer steps on all
    ranks at once, `peak_memory` in bytes of rank 0 while training; `comparisons` what the run's own
    `evaluation/comparisons.json` has, where there is one."""

    name: str
    seed: int
    method: str
    modules: str
    layers: tuple[int, ...]
    trained_parameters: int
    trained_share: float
    steps: int
    seconds: float
    peak_memory: int
    answers: Mapping[str, Mapping[str, Answers]]
    benchmarks: Mapping[str, str]  # name → SHA-256 (`benchmark_hashes`)
    settings: Mapping[str, Any]  # of the stage `evaluate`, by dotted key
    comparisons: Mapping[str, Mapping[str, Any]]

    def published(self, benchmark: str, way: str, language: str) -> Mapping[str, Any]:
        """The comparison that the run's evaluation has published, so that no other numbers are shown."""
        found = self.comparisons.get(benchmark, {}).get(language, {})
        if self.answers[benchmark][way].circular:
            found = found.get("circular", {})
        return found.get(way) or {}


def read_outcome(path: Path) -> Outcome:
    """Raises UserError for a folder that is not a run, or whose evaluation is missing or out of date."""
    run = RunFolder(path)
    if not run.config.is_file():
        raise UserError(f"{path}: no run folder (it has no config.yaml); give the --out of a run")
    record = run.record("evaluate")
    if record is None or not is_current("evaluate", run):
        raise UserError(f"{path}: is not evaluated; finish it first with plast run … --out {path}")
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    published = run.evaluation / "comparisons.json"
    selection, rule = read_json(run.selection), config["evaluate"]["matching"]
    metrics = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return Outcome(
        name=path.name,
        seed=config["seed"],
        method=config["train"]["method"],
        modules=selection["modules"],
        layers=tuple(selection["selected_layers"]),
        trained_parameters=selection["trainable_parameters"],
        trained_share=selection["trainable_fraction"],
        steps=metrics[-1]["step"],
        seconds=sum(m["seconds"] for m in metrics),
        peak_memory=max(m["peak_memory_bytes"] for m in metrics),
        answers=read_answers(run.evaluation / "predictions", rule),
        benchmarks={name: value for name, value in record["inputs"].items() if is_benchmark(name)},
        settings=record["settings"],
        comparisons=read_json(published) if published.is_file() else {},
    )


def read_answers(predictions: Path, rule: str) -> dict[str, dict[str, Answers]]:
    """Benchmark → way of scoring → answers, from `predictions/*.jsonl`."""
    records: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(predictions.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for record in map(json.loads, file):
                records[record["benchmark"]].append(record)
    return {name: _by_way(own, rule) for name, own in records.items()}


def _by_way(records: Sequence[dict[str, Any]], rule: str) -> dict[str, Answers]:
    matched = records[0]["matched"]
    own_rule = rule if rule in matched else next(iter(matched))
    ways = {"generated": lambda record: generated_right(record, own_rule)}
    if records[0]["option_logits"] is not None:  # open questions have no options
        ways["option_logits"] = option_logits_right
    return {way: _answers(records, right) for way, right in ways.items()}


def _answers(records: Sequence[dict[str, Any]], right: Any) -> Answers:
    # A unit is right only if all its rows are: in a circular benchmark, every order of the options.
    found: dict[tuple[str, str, int], bool] = {}
    for record in records:
        unit = record["index"] if record["group"] is None else record["group"]
        key = record["model"], record["language"], unit
        found[key] = found.get(key, True) and right(record)
    languages = tuple(english_first({language for _, language, _ in found}))
    units = tuple(sorted({unit for _, _, unit in found}))
    tables = {model: np.full((len(languages), len(units)), np.nan) for model in (BASE, TRAINED)}
    at = {unit: i for i, unit in enumerate(units)}
    for (model, language, unit), is_right in found.items():
        tables[model][languages.index(language), at[unit]] = float(is_right)
    circular = records[0]["group"] is not None
    return Answers(languages, units, tables[BASE], tables[TRAINED], circular)


def require_same_benchmarks(outcomes: Sequence[Outcome]) -> None:
    """Raises UserError, naming benchmark file and run, where two runs were not evaluated alike."""
    for other in outcomes[1:]:
        first = outcomes[0]
        for file in sorted({*first.benchmarks, *other.benchmarks}):
            if first.benchmarks.get(file) == other.benchmarks.get(file):
                continue
            lacking = [o.name for o in (first, other) if file not in o.benchmarks]
            what = f"{lacking[0]} did not evaluate it" if lacking else "its content differs"
            raise UserError(
                f"{first.name} and {other.name} cannot be compared on {file}: {what}; evaluate both on the "
                "same evaluate.benchmarks"
            )
        for key, value in first.settings.items():
            if other.settings.get(key) != value:
                raise UserError(
                    f"{first.name} and {other.name} were evaluated differently: {key} is {value} and "
                    f"{other.settings.get(key)}; evaluate both with the same"
                )
