"""The stage `report`: one page that shows what a run found, trained and gained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from plast_train.analysis.html_page import facts, figures, page, table
from plast_train.analysis.plots import plot_accuracies, plot_training
from plast_train.config import Config
from plast_train.context import Context
from plast_train.evaluation.accuracies import (
    BASE,
    ENGLISH,
    MEAN,
    TRAINED,
    accuracies,
    is_circular,
    percent,
    points,
)
from plast_train.run_folder import RunFolder, publish_text, read_json

# Changes in accuracy or share, as fractions of 1, from which a table's reader should be told.
ENGLISH_FALLS, UNMATCHED_RISES = 0.01, 0.05


def report(context: Context) -> list[Path]:
    """Writes `RUN/report/index.html` and its figures, and returns the page. Rank 0 does the work."""
    context.ranks.on_first(lambda: write_report(context.config, context.run))
    return [context.run.report / "index.html"]


def write_report(config: Config, run: RunFolder) -> None:
    """The page of a run that has been trained and evaluated, with the figures that selecting left there."""
    sections = [
        *_accuracy_sections(config, run),
        _layer_section(run),
        _training_section(run),
        _run_section(run),
    ]
    title = f"{Path(config.model.path).name}, language-specific layers fine-tuned"
    publish_text(run.report / "index.html", page(title, _headline(run, config), sections))


def _headline(run: RunFolder, config: Config) -> str:
    selection, layers = read_json(run.selection), read_json(run.summary)["layers"]
    share = f"{selection['trainable_fraction']:.1%} of {selection['total_parameters']:,} parameters"
    others = _listed(language for language in config.data.languages if language != ENGLISH)
    selected = f"ayers {_listed(selection['selected_layers'])} of {layers}"
    what = {
        "layers": f"L{selected}",
        "lora": f"LoRA adapters on l{selected}",
        "full": "All weights but the vision tower's",
    }[config.train.method]
    return f"{what} ({share}) were trained to translate questions from {others} into English."


def _accuracy_sections(config: Config, run: RunFolder) -> list[str]:
    results = read_json(run.results)
    if not results:
        return ["<h2>Accuracy</h2><p>No benchmark was evaluated (evaluate.benchmarks is empty).</p>"]
    return [_accuracy_section(name, cells, config.evaluate.matching, run) for name, cells in results.items()]


def _accuracy_section(name: str, cells: Mapping[str, Any], rule: str, run: RunFolder) -> str:
    """One benchmark of `results.json`: accuracy per language before and after, each way of scoring."""
    circular = is_circular(cells)
    parts = [f"<h2>Accuracy on {escape(name)}</h2>"]
    for way in ("circular", "rows") if circular else ("rows",):
        shown = accuracies(cells, rule, way == "circular")
        if way == "circular" or not circular:
            generated = {language: numbers[:2] for language, numbers in shown.items()}
            _, svg = plot_accuracies(generated, run.report / f"accuracy-{_file_name(name)}")
            parts += [_warnings(shown, cells, rule), figures({f"Accuracy on {name}": svg})]
        counted = "questions right in every order of their options" if way == "circular" else "single rows"
        parts.append(f"<h3>In % of {counted}; generated answers matched by the rule {escape(rule)}</h3>")
        parts.append(_accuracy_table(shown, cells, way, rule))
    return "".join(parts)


def _accuracy_table(
    shown: Mapping[str, tuple[float, ...]], cells: Mapping[str, Any], way: str, rule: str
) -> str:
    """Replies that name no option are counted by rows, so they stand in the table of rows alone."""
    of_rows = way == "rows"
    rows = []
    for language, (before, after, logits_before, logits_after) in shown.items():
        row = [percent(before), percent(after), points(before, after)]
        row += [percent(logits_before), percent(logits_after), points(logits_before, logits_after)]
        cell = cells.get(language)  # none for the mean
        if of_rows:
            row += [percent(cell[m]["no_match"][rule]) if cell else "" for m in (BASE, TRAINED)]
        count = str(cell[BASE]["n"] if of_rows else cell[BASE]["circular"]["n"]) if cell else ""
        rows.append([language, count, *row])
    head = ["language", "n", *["base", "trained", "change"] * 2, *["base", "trained"] * of_rows]
    groups = [("", 2), ("generated answers", 3), ("option logits", 3)]
    groups += [("replies naming no option", 2)] * of_rows
    return table(head, rows, {len(rows) - 1: "last"} if MEAN in shown else {}, groups)


def _warnings(shown: Mapping[str, tuple[float, ...]], cells: Mapping[str, Any], rule: str) -> str:
    """The failures to look for, where they show."""
    found = []
    if ENGLISH in shown and shown[ENGLISH][1] < shown[ENGLISH][0] - ENGLISH_FALLS:
        change = points(*shown[ENGLISH][:2])
        found.append(f"English changed by {change} points: try fewer steps or a lower learning rate.")
    if MEAN in shown and shown[MEAN][1] <= shown[MEAN][0]:
        found.append("The other languages did not gain: the bottleneck may be elsewhere, e.g. in vision.")
    unmatched = [
        language
        for language, cell in cells.items()
        if cell[TRAINED]["no_match"][rule] > cell[BASE]["no_match"][rule] + UNMATCHED_RISES
    ]
    if unmatched:
        found.append(
            f"More replies name no option in {_listed(unmatched)}: look into evaluation/predictions whether "
            "answers have turned into translations."
        )
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in found)


def _layer_section(run: RunFolder) -> str:
    summary, selection = read_json(run.summary), read_json(run.selection)
    options = {key: value for key, value in selection["options"].items() if value is not None}
    chosen = {
        "strategy": selection["strategy"],
        "selected layers": _listed(selection["selected_layers"]),
        "candidates": _listed(selection["candidates"]) or "none",
        "MSD threshold": "none" if selection["threshold"] is None else f"{selection['threshold']:.6g}",
        "modules": selection["modules"],
        "parameters trained": f"{selection['trainable_parameters']:,}",
        "records probed": summary["records"],
        "our reading of the method": ", ".join(f"{key} {value}" for key, value in options.items()),
    }
    kind = selection["options"]["overlap"]
    ratios = summary["overlap" if kind == "english" else "jaccard"]
    others = [language for language in summary["languages"] if language != ENGLISH]
    rows = [
        [
            str(layer),
            *(f"{ratios[language][layer]:.3f}" for language in others),
            f"{selection['curve'][layer]:.3f}",
            f"{msd:.5g}",
            "yes" if layer in selection["candidates"] else "",
            "yes" if layer in selection["selected_layers"] else "",
        ]
        for layer, msd in enumerate(summary["msd"])
    ]
    head = ["layer", *others, "mean", "MSD", "candidate", "selected"]
    per_layer = table(head, rows, dict.fromkeys(selection["selected_layers"], "mark"))
    shown = {
        "Overlap with English per layer": run.report / "overlap.svg",
        "MSD per layer": run.report / "msd.svg",
    }
    return "<h2>Layers</h2>" + figures(shown) + facts(chosen) + per_layer


def _training_section(run: RunFolder) -> str:
    metrics = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    _, svg = plot_training(metrics, run.report / "training")

    def middle(key: str, scale: float = 1.0) -> str:
        values = [m[key] for m in metrics if m.get(key) is not None]
        return f"{median(values) / scale:,.4g}" if values else "unknown"

    measures = {
        "steps": metrics[-1]["step"],
        "loss, first and last step": f"{metrics[0]['loss']:.4f}, {metrics[-1]['loss']:.4f}",
        "samples a second": middle("samples_per_second"),
        "tokens a second": middle("tokens_per_second"),
        "useful GFLOP a second": middle("useful_flops_per_second", 1e9),
        "MFU": middle("mfu"),
        "share of time waiting for data": middle("data_wait_share"),
        "peak memory (GB)": f"{max(m['peak_memory_bytes'] for m in metrics) / 1e9:.2f}",
    }
    measured = [m for m in metrics if m.get("validation_loss")]
    held_back = ""
    if measured:
        head = ["held-back loss", *(f"step {m['step']}" for m in measured)]
        languages = measured[0]["validation_loss"]
        rows = [[x, *(f"{m['validation_loss'][x]:.4f}" for m in measured)] for x in languages]
        held_back = table(head, rows)
    return "<h2>Training</h2>" + figures({"Loss": svg}) + facts(measures) + held_back


def _run_section(run: RunFolder) -> str:
    environment, base = read_json(run.environment), read_json(run.base)
    packages = environment.pop("packages")
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    others = {
        key: json.dumps(value) if isinstance(value, list) else value for key, value in environment.items()
    }
    known = {"base": base["path"], "SHA-256 of the base": base["fingerprint"], "versions": versions} | others
    config = escape(run.config.read_text(encoding="utf-8"))
    return f"<h2>Versions and hardware</h2>{facts(known)}<h2>Config</h2><pre>{config}</pre>"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _file_name(name: str) -> str:
    """A benchmark's name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
