"""The report's sections on training, costs, versions and config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Any

from plast_train.figures.page import Section, facts, figure, heading, paragraph
from plast_train.figures.plots import plot_training
from plast_train.figures.tables import NOTHING, Table, publish_table
from plast_train.run_folder import RunFolder, read_json

Metrics = Sequence[dict[str, Any]]


def read_metrics(run: RunFolder) -> Metrics:
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def training_section(run: RunFolder) -> Section:
    metrics = read_metrics(run)
    plot_training(metrics, run.report / "training")
    caption = "Loss of each optimizer step, and of records that were held back, the mean over languages."
    measures = {
        "optimizer steps": metrics[-1]["step"],
        "loss, first and last step": f"{metrics[0]['loss']:.4f}, {metrics[-1]['loss']:.4f} nats a token",
    }
    proof = run.path / "freezing.json"
    if proof.exists():
        measures |= _freezing(read_json(proof))
    body = figure(run.report / "training.svg", caption) + facts(measures)
    measured = [m for m in metrics if m.get("validation_loss")]
    if measured:
        languages = measured[0]["validation_loss"]
        rows = [[x, *(f"{m['validation_loss'][x]:.4f}" for m in measured)] for x in languages]
        head = ["language", *(f"step {m['step']}" for m in measured)]
        body += publish_table(
            Table("held-back-loss", "Loss on records that were held back (nats a token).", head, rows),
            run.report,
        )
    return Section("training", "Training", body)


def _freezing(proof: dict[str, Any]) -> dict[str, str]:
    """What shows that just the trained weights were trained."""
    return {
        "trained tensors": f"{len(proof['trained_tensors'])}, "
        + ("each" if proof["every_trained_tensor_had_a_gradient"] else "not each")
        + " with a gradient after the first step",
        "frozen tensors": f"{proof['frozen_tensors_unchanged']} unchanged at the end (by their hashes)",
    }


def cost_section(run: RunFolder) -> Section:
    """Time of each stage, and what training took."""
    body = publish_table(_stage_table(run), run.report) if run.stage_times.exists() else ""
    body += heading("Training") + facts(_training_costs(read_metrics(run)))
    return Section("costs", "Costs", body)


def _stage_table(run: RunFolder) -> Table:
    """The last time that each stage was done: a stage that was stopped counts from its last start."""
    times = [json.loads(line) for line in run.stage_times.read_text(encoding="utf-8").splitlines()]
    last = {entry["stage"]: entry for entry in times}
    rows = [
        [
            stage,
            f"{entry['seconds']:.1f}",
            str(entry["ranks"]),
            f"{entry['seconds'] * entry['ranks'] / 3600:.3f}",
        ]
        for stage, entry in last.items()
        if stage != "report"  # not over when this is written
    ]
    return Table(
        "costs",
        "Time of each stage from its last start (of a stage that was stopped, the last part). Loading the "
        "model, once for all stages, is not among them.",
        ["stage", "time (s)", "ranks", "rank hours"],
        rows,
    )


def _training_costs(metrics: Metrics) -> dict[str, Any]:
    seconds = [m["seconds"] for m in metrics]
    flops = [m.get("useful_flops_per_second") for m in metrics]
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


def run_section(run: RunFolder) -> Section:
    environment, base = read_json(run.environment), read_json(run.base)
    packages = environment.pop("packages")
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    others = {k: json.dumps(v) if isinstance(v, list) else v for k, v in environment.items() if v is not None}
    known = {"base model": base["path"], "SHA-256 of the base": base["fingerprint"], "versions": versions}
    config = escape(run.config.read_text(encoding="utf-8"))
    text = "Everything that was asked for, defaults included; `plast run` with this file repeats the run."
    body = facts(known | others) + heading("Config") + paragraph(text) + f"<pre>{config}</pre>"
    return Section("versions", "Versions, hardware, config", body)
