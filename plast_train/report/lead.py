"""What the page says first: what was done, what came of it, and the warnings a reader needs before believing
any gain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plast_train.config import Config
from plast_train.data.languages import ENGLISH, language_name
from plast_train.report.accuracy import interval_and_p
from plast_train.report.results import Result
from plast_train.run_folder import RunFolder, read_json
from plast_train.scoring.accuracies import BASE, MEAN, TRAINED, compared_by, percent, points

# Changes in accuracy or share, as fractions of 1, from which a reader is warned (our choice).
ENGLISH_FALLS, SHARE_RISES = 0.01, 0.05
_SHARES = {
    "no_match": "More replies name no option",
    "empty": "More replies are empty",
    "translations": "More replies repeat or translate the question instead of answering",
}


def lead_of(run: RunFolder, config: Config, results: Sequence[Result]) -> dict[str, Any]:
    warnings = [f"{result.name}: {text}" for result in results for text in _warnings_of(result)]
    return {
        "summary": _summary(run, config),
        "headlines": [_headline(result) for result in results],
        "warnings": [*warnings, *_warnings_of_launches(run)],
    }


def _summary(run: RunFolder, config: Config) -> str:
    selection, num_layers = read_json(run.selection), read_json(run.summary)["layers"]
    chosen = selection["selected_layers"]
    layers = f"ecoder layer{'s' * (len(chosen) > 1)} {', '.join(map(str, chosen))} of 0 to {num_layers - 1}"
    what = {
        "layers": f"d{layers}",
        "lora": f"LoRA adapters on d{layers}",
        "full": "all weights but the vision tower's",
    }[config.train.method]
    others = ", ".join(language_name(x) for x in config.data.languages if x != ENGLISH)
    return (
        f"Trained to translate questions from {others} into English: {what}, "
        f"{selection['trainable_fraction']:.1%} of {selection['total_parameters']:,} parameters (modules: "
        f"{selection['modules']}; strategy: {selection['strategy']}). Everything else stayed frozen."
    )


def _headline(result: Result) -> str:
    """One sentence: how English and the mean of the others changed."""
    accuracies = result.accuracies()
    changes = []
    for label, name in ((ENGLISH, "English"), (MEAN, "the mean of the other languages")):
        if label not in accuracies:
            continue
        before, after = accuracies[label][:2]
        change = f"{name} {percent(before)} → {percent(after)} % ({points(before, after)} points"
        comparison = result.comparison(label, "generated")
        if comparison is not None and comparison["low"] is not None:
            low, high, p = interval_and_p(comparison)
            change += f", 95 % interval {low} to {high}, p {p if p.startswith('<') else f'= {p}'}"
        changes.append(f"{change})")
    return f"{result.name}: {'; '.join(changes)}."


def _warnings_of(result: Result) -> Iterator[str]:
    shown = result.accuracies()
    if ENGLISH in shown and shown[ENGLISH][1] < shown[ENGLISH][0] - ENGLISH_FALLS:
        change = points(*shown[ENGLISH][:2])
        yield f"English changed by {change} points; try fewer steps or a lower learning rate."
    if MEAN in shown and shown[MEAN][1] <= shown[MEAN][0]:
        yield "The other languages did not gain; the bottleneck may be elsewhere, e.g. in vision."
    compared = {label: compared_by(result.compared.get(label, {}), result.ways[0]) for label in shown}
    formatting = [label for label, own in compared.items() if own.get("formatting")]
    if formatting:
        yield (
            f"Formatting: generated answers gain in {', '.join(formatting)}, option logits do not. Such a "
            "gain can be one in the form of the answers alone."
        )
    for key, text in _SHARES.items():
        risen = [language for language, cell in result.cells.items() if _rises(cell, key, result.rule)]
        if risen:
            yield f"{text} in {', '.join(sorted(risen))} than before training; see the table of replies."


def _rises(cell: Mapping[str, Any], key: str, rule: str) -> bool:
    before, after = (cell[model][key] for model in (BASE, TRAINED))
    if key == "no_match":
        before, after = before[rule], after[rule]
    return bool(after > before + SHARE_RISES)


def _warnings_of_launches(run: RunFolder) -> Iterator[str]:
    """A run that was restarted after a failure says so."""
    path = run.path / "attempts.jsonl"
    faults = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:  # the launcher was killed while it wrote this line
            continue
        if event.get("event") == "ended" and event["kind"] not in ("done", "user"):
            faults.append(event["kind"])
    if faults:
        yield (
            f"{len(faults)} launches of this run did not end by themselves or failed "
            f"({', '.join(dict.fromkeys(faults))}); attempts.jsonl has the reasons."
        )
