"""The stage `select`: from the integer tables to the layers to train (METHOD §2, §3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from plast_train.analysis.plots import plot_layers
from plast_train.config import Config
from plast_train.context import Context
from plast_train.lvlm.families import family_of
from plast_train.lvlm.freezing import trainable_parameters
from plast_train.run_folder import publish_text, read_json, to_json
from plast_train.selection.statistics import LayerStatistics, layer_statistics
from plast_train.selection.strategies import Selection, layer_table, select_layers


def select(context: Context) -> list[Path]:
    """Writes `activations/summary.json`, `selection.json` and, in `report/`, the plots `overlap` and `msd`
    (PNG and SVG), prints the per-layer table, and returns the files. Rank 0 does the work.

    Raises:
        UserError: on every rank, where `select_layers` or the model refuses the selection.
    """
    outputs: list[Path] = context.ranks.on_first(lambda: _select(context))
    return outputs


def _select(context: Context) -> list[Path]:
    config, run = context.config, context.run
    tables = load_file(run.statistics)
    statistics = layer_statistics(tables, tuple(config.data.languages), config.probe.position)
    summary = summary_tree(statistics, config, records=len(tables["record_index"]))
    publish_text(run.summary, to_json(summary))
    selection = select_layers(statistics, config.selection, config.seed)
    context.ranks.say(layer_table(statistics, selection))
    tree = selection_tree(selection, config) | count_parameters(Path(context.base["path"]), selection, config)
    context.ranks.say(_headline(tree))
    publish_text(run.selection, to_json(tree))
    return [run.summary, run.selection, *plot_layers(summary, tree, run.report)]


def summary_tree(statistics: LayerStatistics, config: Config, records: int) -> dict[str, Any]:
    """What `summary.json` holds (DESIGN §3), and which reading of the method it is."""

    def by_language(table: Any) -> dict[str, list[float]]:
        return {language: table[:, g].tolist() for g, language in enumerate(statistics.languages)}

    return {
        "languages": list(statistics.languages),
        "layers": statistics.layers,
        "records": records,
        "overlap": by_language(statistics.overlap),
        "jaccard": by_language(statistics.jaccard),
        "active": by_language(statistics.active),
        "msd": statistics.msd(config.selection.reference).tolist(),
        "options": {"position": config.probe.position, "reference": config.selection.reference},
    }


def selection_tree(selection: Selection, config: Config) -> dict[str, Any]:
    """What `selection.json` holds (DESIGN §3) but for the parameter counts. `options` names every reading of
    the method that is our choice."""
    options = config.selection
    return {
        "strategy": selection.strategy,
        "candidates": list(selection.candidates),
        "threshold": selection.threshold,
        "selected_layers": list(selection.selected),
        "modules": options.modules,
        "plateau": selection.plateau,
        "curve": selection.curve.tolist(),
        "options": {
            "position": config.probe.position,
            "reference": options.reference,
            "overlap": options.overlap,
            "tolerance": options.tolerance,
            "threshold": options.threshold,
            "k": options.k,
            "seed": config.seed if options.strategy == "random" else None,
        },
    }


def count_parameters(base: Path, selection: Selection, config: Config) -> dict[str, Any]:
    """Parameters in all and in what is trained, from the model without its weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    trust = config.model.trust_remote_code
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(base, trust_remote_code=trust), trust_remote_code=trust
        )
    family = family_of(read_json(base / "config.json"), str(base / "config.json"))
    trained = trainable_parameters(model, family, selection.selected, config.selection.modules)
    total, ours = (sum(p.numel() for p in part) for part in (model.parameters(), trained.values()))
    return {"trainable_parameters": ours, "total_parameters": total, "trainable_fraction": ours / total}


def _headline(tree: dict[str, Any]) -> str:
    return (
        f"select: layers {tree['selected_layers']} ({tree['strategy']}, modules {tree['modules']}): "
        f"{tree['trainable_parameters']:,} of {tree['total_parameters']:,} parameters are trained "
        f"({tree['trainable_fraction']:.2%})"
    )
