"""The stage `select`: from the integer tables to the layers to train (arXiv 2508.18381)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from plast_train.config import Config
from plast_train.context import Context
from plast_train.figures.plots import plot_layers
from plast_train.lvlm.architectures import count_parameters, read_architecture
from plast_train.neurons.statistics import LayerStatistics, layer_statistics
from plast_train.neurons.strategies import Selection, layer_table, select_layers
from plast_train.run_folder import publish_text, to_json


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
    summary = summary_tree(statistics, config, len(tables["record_index"]))
    publish_text(run.summary, to_json(summary))
    selection = select_layers(statistics, config.selection, config.seed)
    context.ranks.say(layer_table(statistics, selection))
    total, trained = count_parameters(
        read_architecture(Path(context.base["path"]), config.model.path),
        selection.selected,
        config.selection.modules,
        config.train,
        context.trains_projector,
    )
    counts = {
        "trainable_parameters": trained,
        "total_parameters": total,
        "trainable_fraction": trained / total,
    }
    tree = selection_tree(selection, config) | counts
    context.ranks.say(_headline(tree))
    publish_text(run.selection, to_json(tree))
    return [run.summary, run.selection, *plot_layers(summary, tree, run.report)]


def summary_tree(statistics: LayerStatistics, config: Config, num_records: int) -> dict[str, Any]:
    """What `summary.json` holds, and which reading of the method it is."""

    def by_language(table: Any) -> dict[str, list[float]]:
        return {language: table[:, g].tolist() for g, language in enumerate(statistics.languages)}

    return {
        "languages": list(statistics.languages),
        "layers": statistics.num_layers,
        "records": num_records,
        "overlap": by_language(statistics.overlap),
        "jaccard": by_language(statistics.jaccard),
        "active": by_language(statistics.active),
        "msd": statistics.msd(config.selection.reference).tolist(),
        "options": {"position": config.probe.position, "reference": config.selection.reference},
    }


def selection_tree(selection: Selection, config: Config) -> dict[str, Any]:
    """What `selection.json` holds but for the parameter counts. `options` names every reading of
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


def _headline(tree: dict[str, Any]) -> str:
    return (
        f"select: layers {tree['selected_layers']} ({tree['strategy']}, modules {tree['modules']}): "
        f"{tree['trainable_parameters']:,} of {tree['total_parameters']:,} parameters are trained "
        f"({tree['trainable_fraction']:.2%})"
    )
