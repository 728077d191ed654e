"""Prediction records on disk: parts while the ranks write them, then one file per benchmark and language.

`evaluation/parts/MODEL/rank-N.jsonl` is what a rank has answered so far, and where evaluating resumes after a
kill, on any number of ranks. `evaluation/predictions/BENCHMARK.LANG.jsonl` and `evaluation/results.json` are
made of the parts of all models: a line there names its model (`base`, `plast`) in the field `model`, and has
the columns of VLMEvalKit's tables (`index, question, A, …, answer, category, l2-category, prediction`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plast_train.config import EvaluateConfig
from plast_train.errors import UserError
from plast_train.run_folder import publish_folder, publish_text, read_json, to_json
from plast_train.scoring.comparisons import compare_all
from plast_train.scoring.questions import Key
from plast_train.scoring.records import Record
from plast_train.scoring.scores import results
from plast_train.tasks.benchmark import Benchmark
from plast_train.tasks.matching import RULES


def key_of(record: Record) -> Key:
    return record["benchmark"], record["language"], record["index"]


def open_parts(folder: Path, settings: dict[str, Any], digests: Mapping[Key, str]) -> set[Key]:
    """Which of the questions of `digests` have been answered in `folder` under these settings. To be called
    on one rank, before any writes.

    Parts made with other settings are deleted, and so are a line cut short by a kill, and answers to
    questions whose content or right answer has changed; those to questions not in `digests` stay. `settings`
    is plain JSON and names all that the answers depend on beside what `digests` stand for: weights, new
    tokens, precision.
    """
    answered_with = folder / "settings.json"
    if not answered_with.exists() or read_json(answered_with) != settings:
        shutil.rmtree(folder, ignore_errors=True)
        publish_text(answered_with, to_json(settings))
    for part in _parts(folder):
        with part.open("r+b") as file:  # a kill may have cut the last line
            file.truncate(file.read().rfind(b"\n") + 1)
    records = read_parts(folder)
    kept = [r for r in records if digests.get(key_of(r), r["digest"]) == r["digest"]]
    if len(kept) < len(records):
        # The new file first: a kill in between leaves some answers twice, but loses none.
        first, *others = _parts(folder)
        publish_text(first, _lines(kept))
        for part in others:
            part.unlink()
    return {key_of(record) for record in kept} & set(digests)


def answers_depend_on(config: EvaluateConfig, dtype: str, weights: str) -> dict[str, Any]:
    """`settings` of `open_parts`: in float32 replies are the same for every batch size, so it is not among
    them."""
    settings = {
        "weights": weights,
        "dtype": dtype,
        "max_new_tokens": config.max_new_tokens,
        "localised_instruction": config.localised_instruction,
    }
    return settings if dtype == "float32" else settings | {"batch_size": config.batch_size}


def append_part(folder: Path, rank: int, records: Iterable[Record]) -> None:
    """Adds records to a rank's part; they are on the disk when this returns."""
    with (folder / f"rank-{rank}.jsonl").open("ab") as file:
        file.write(_lines(records).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """All records of a model. Raises UserError for a line that is not JSON."""
    records = []
    for part in _parts(folder):
        with part.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    records.append(json.loads(line))
                except ValueError as error:
                    raise UserError(f"{part}:{number}: not JSON ({error}); remove the line") from None
    return records


def publish_results(
    evaluation: Path,
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    matching: str = RULES[0],
) -> dict[str, Any]:
    """Makes the predictions' files and `results.json` from the models' parts, and returns the results.

    `results.json` is what `scores.results` returns. Of two models, base and trained, each language has a
    `comparison`, too (`comparisons.compare`; `matching` is the rule for multiple choice), and
    `comparisons.json` holds `{benchmark: {language or "mean of the others": comparison}}`, English first.
    To be called on one rank, after all have finished. Raises RuntimeError if a row was not answered.
    """
    used = _publish_predictions(evaluation, benchmarks, models)
    table = results(used)
    if len(models) == 2:
        compared = compare_all(used, models[0], models[1], matching)
        for benchmark, languages in table.items():
            for language, cell in languages.items():
                cell["comparison"] = compared[benchmark][language]
        publish_text(evaluation / "comparisons.json", to_json(compared))
    publish_text(evaluation / "results.json", to_json(table))
    return table


def _publish_predictions(
    evaluation: Path, benchmarks: Sequence[Benchmark], models: Sequence[str]
) -> list[Record]:
    """One file a benchmark and language, the models' records after each other; returns all records."""
    answers = {
        (model, key_of(record)): record
        for model in models
        for record in read_parts(evaluation / "parts" / model)
    }
    unfinished = evaluation / ".predictions.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    used: list[Record] = []
    for benchmark in benchmarks:
        keys = [(benchmark.name, benchmark.language, item.index) for item in benchmark.items]
        missing = [(model, key) for model in models for key in keys if (model, key) not in answers]
        if missing:
            raise RuntimeError(f"{len(missing)} rows of {benchmark.path} were not answered: {missing[:3]}")
        records = [answers[model, key] for model in models for key in keys]
        publish_text(unfinished / f"{benchmark.name}.{benchmark.language}.jsonl", _lines(records))
        used += records
    publish_folder(unfinished, evaluation / "predictions")
    return used


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank-*.jsonl"))


def _lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
