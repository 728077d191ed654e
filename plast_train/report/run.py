"""The report's sections on what was selected and trained: layers, training, costs, versions and config."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from plast_train.data.languages import ENGLISH
from plast_train.figures.page import Section
from plast_train.figures.plots import plot_training
from plast_train.figures.tables import NOTHING, Table, publish_table
from plast_train.run_folder import RunFolder, read_json


def layer_section(run: RunFolder) -> Section:
    """Overlap and MSD, the candidates and the choice."""
    summary, selection = read_json(run.summary), read_json(run.selection)
    threshold, chosen = selection["threshold"], selection["selected_layers"]
    options = {key: value for key, value in selection["options"].items() if value is not None}
    facts = {
        "strategy": selection["strategy"],
        "selected layers": ", ".join(map(str, chosen)),
        "candidates": ", ".join(map(str, selection["candidates"])) or "none",
        "MSD threshold": "none" if threshold is None else f"{threshold:.6g} neurons²",
        "modules": selection["modules"],
        "parameters trained": f"{selection['trainable_parameters']:,} of {selection['total_parameters']:,}",
        "records probed": summary["records"],
        "our reading of the method": ", ".join(f"{key} {value}" for key, value in options.items()),
    }
    by_overlap = options["overlap"] == "english"
    measure = "Overlap" if by_overlap else "Jaccard index"
    ratios = summary["overlap" if by_overlap else "jaccard"]
    others = [language for language in summary["languages"] if language != ENGLISH]
    table = Table(
        head=["layer", *others, "mean", "MSD", "candidate", "selected"],
        rows=[
            [
                str(layer),
                *(f"{ratios[language][layer]:.3f}" for language in others),
                f"{selection['curve'][layer]:.3f}",
                f"{msd:.5g}",
                "yes" if layer in selection["candidates"] else "",
                "yes" if layer in chosen else "",
            ]
            for layer, msd in enumerate(summary["msd"])
        ],
        name="layers",
        caption=f"{measure} with English per language and its mean, and MSD (neurons²), by decoder layer.",
        classes=dict.fromkeys(chosen, "mark"),
    )
    content = {"measure": measure, "facts": facts, "table": publish_table(table, run.report)}
    return Section("layers", "Layers", content)


def training_section(run: RunFolder) -> Section:
    """The loss of each step, and what proves that only the chosen weights were trained."""
    metrics = _read_lines(run.metrics)
    plot_training(metrics, run.report / "training")
    facts = {
        "optimizer steps": metrics[-1]["step"],
        "loss, first and last step": f"{metrics[0]['loss']:.4f}, {metrics[-1]['loss']:.4f} nats a token",
    }
    if (run.path / "freezing.json").exists():
        proof = read_json(run.path / "freezing.json")
        num_trained = len(proof["trained_tensors"])
        each = "each" if proof["every_trained_tensor_had_a_gradient"] else "not each"
        facts |= {
            "trained tensors": f"{num_trained}, {each} with a gradient after the first step",
            "frozen tensors": f"{proof['frozen_tensors_unchanged']} unchanged at the end (by their hashes)",
        }
    measured = [m for m in metrics if m.get("validation_loss")]
    held_back = None
    if measured:
        languages = measured[0]["validation_loss"]
        table = Table(
            head=["language", *(f"step {m['step']}" for m in measured)],
            rows=[[x, *(f"{m['validation_loss'][x]:.4f}" for m in measured)] for x in languages],
            name="held-back-loss",
            caption="Loss on records that were held back (nats a token).",
        )
        held_back = publish_table(table, run.report)
    return Section("training", "Training", {"facts": facts, "held_back": held_back})


def cost_section(run: RunFolder) -> Section:
    """Time of each stage, and what training took."""
    stages = publish_table(_stage_table(run), run.report) if run.stage_times.exists() else None
    content = {"stages": stages, "training": _training_costs(_read_lines(run.metrics))}
    return Section("costs", "Costs", content)


def _stage_table(run: RunFolder) -> Table:
    # The last line of each stage counts: a stage that was redone has several.
    last = {entry["stage"]: entry for entry in _read_lines(run.stage_times)}
    return Table(
        head=["stage", "time (s)", "ranks", "rank hours"],
        rows=[
            [
                stage,
                f"{entry['seconds']:.1f}",
                str(entry["ranks"]),
                f"{entry['seconds'] * entry['ranks'] / 3600:.3f}",
            ]
            for stage, entry in last.items()
            if stage != "report"  # an earlier report's: this one is still being written
        ],
        name="costs",
        caption="Time of each stage from its last start (of a stage that was stopped, the last part). "
        "Loading the model, once for all stages, is not among them.",
    )


def _training_costs(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [m["seconds"] for m in metrics]
    flops = [m.get("useful_flops_per_second") for m in metrics]
    # A run that an older version began may have steps without FLOPs; a sum over the others would be too low.
    total = sum(f * s for f, s in zip(flops, seconds, strict=True)) if None not in flops else None

    def middle(key: str, scale: float = 1.0) -> str:
        values = [m[key] for m in metrics if m.get(key) is not None]
        return f"{median(values) / scale:,.4g}" if values else "unknown"

    return {
        "time in optimizer steps (s)": f"{sum(seconds):.1f}",
        "useful floating-point operations": NOTHING if total is None else f"{total / 1e12:,.4g} TFLOP",
        "samples a second, median": middle("samples_per_second"),
        "tokens a second, median": middle("tokens_per_second"),
        "useful GFLOP a second, median": middle("useful_flops_per_second", 1e9),
        "MFU, median": middle("mfu"),
        "share of time waiting for data, median": middle("data_wait_share"),
        "peak memory of rank 0 (GB)": f"{max(m['peak_memory_bytes'] for m in metrics) / 1e9:.2f}",
    }


def version_section(run: RunFolder) -> Section:
    environment, base = read_json(run.environment), read_json(run.base)
    packages = environment.pop("packages")
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    others = {k: json.dumps(v) if isinstance(v, list) else v for k, v in environment.items() if v is not None}
    facts = {"base model": base["path"], "SHA-256 of the base": base["fingerprint"], "versions": versions}
    content = {"facts": facts | others, "config": run.config.read_text(encoding="utf-8")}
    return Section("versions", "Versions, hardware, config", content)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
