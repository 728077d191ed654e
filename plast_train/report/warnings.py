"""What a reader must be told before any gain is believed: the failures to look for, where they show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from plast_train.data.languages import ENGLISH
from plast_train.report.accuracy import Result
from plast_train.run_folder import RunFolder
from plast_train.scoring.accuracies import BASE, MEAN, TRAINED, compared_by, points

# Changes in accuracy or share, as fractions of 1, from which a reader should be told.
ENGLISH_FALLS, SHARE_RISES = 0.01, 0.05
_SHARES = {
    "no_match": "More replies name no option",
    "empty": "More replies are empty",
    "translations": "More replies repeat or translate the question instead of answering",
}


def warnings(results: Sequence[Result], run: RunFolder) -> str:
    """A box of all warnings; nothing where there are none."""
    found = [f"{result.name}: {text}" for result in results for text in _of_benchmark(result)]
    found += list(_of_launches(run))
    if not found:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    return f'<aside class="warnings"><h2>Warnings</h2><ul>{items}</ul></aside>'


def _of_benchmark(result: Result) -> Iterator[str]:
    shown = result.accuracies()
    if ENGLISH in shown and shown[ENGLISH][1] < shown[ENGLISH][0] - ENGLISH_FALLS:
        change = points(*shown[ENGLISH][:2])
        yield f"English changed by {change} points; try fewer steps or a lower learning rate."
    if MEAN in shown and shown[MEAN][1] <= shown[MEAN][0]:
        yield "The other languages did not gain; the bottleneck may be elsewhere, e.g. in vision."
    formatting = [label for label in shown if _is_formatting(result, label)]
    if formatting:
        yield (
            f"Formatting: generated answers gain in {_listed(formatting)}, option logits do not. Such a gain "
            "can be one in the form of the answers alone."
        )
    for key, text in _SHARES.items():
        risen = [language for language, cell in result.cells.items() if _rises(cell, key, result.rule)]
        if risen:
            yield f"{text} in {_listed(sorted(risen))} than before training; see the table of replies."


def _is_formatting(result: Result, label: str) -> bool:
    return bool(compared_by(result.compared.get(label, {}), result.ways[0]).get("formatting"))


def _rises(cell: Mapping[str, Any], key: str, rule: str) -> bool:
    before, after = (cell[model][key] for model in (BASE, TRAINED))
    if key == "no_match":
        before, after = before[rule], after[rule]
    return bool(after > before + SHARE_RISES)


def _of_launches(run: RunFolder) -> Iterator[str]:
    """A run that was restarted says so."""
    path = run.path / "attempts.jsonl"
    events = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kinds = [event["kind"] for event in map(_event, events) if event.get("event") == "ended"]
    faults = [kind for kind in kinds if kind not in ("done", "user")]
    if faults:
        yield (
            f"{len(faults)} launches of this run did not end by themselves or failed ({_listed(faults)}); "
            "attempts.jsonl has the reasons."
        )


def _event(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:  # torn by a kill
        return {}


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
