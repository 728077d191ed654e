"""Whether overlap and MSD hold over the training: both at the base and at each checkpoint that was kept."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from plast_train.analysis.models import each_checkpoint, for_rows, load_weights_of, selected_layers
from plast_train.context import Context
from plast_train.data.packing import shard_rows
from plast_train.data.sampling import probe_records
from plast_train.errors import Interrupted, UserError
from plast_train.neurons.probing import counting, empty_counts, probe_rows
from plast_train.neurons.statistics import LayerStatistics, layer_statistics
from plast_train.neurons.strategies import select_layers
from plast_train.scoring.accuracies import BASE


def stability(context: Context) -> dict[str, Any]:
    """Statistics per layer of each model, and how far they moved from the base's.

    Raises:
        Interrupted: a stop signal came.
    """
    numbers = analysed_records(context)
    for_rows(context)
    load_weights_of(context, BASE)
    models = [{"name": BASE, "step": 0, **_of_model(context, numbers, BASE)}]
    for step in each_checkpoint(context):
        name = f"step {step}"
        models.append({"name": name, "step": step, **_of_model(context, numbers, name)})
    base = models[0]
    for model in models:
        model["msd_rank_correlation"] = rank_correlation(base["msd"], model["msd"])
        model["largest_overlap_change"] = float(
            np.abs(np.subtract(model["curve"], base["curve"])).max(initial=0.0)
        )
    config = context.config
    return {
        "records": len(numbers),
        "position": config.probe.position,
        "reference": config.selection.reference,
        "overlap_kind": config.selection.overlap,
        "languages": config.data.languages,
        "layers": len(base["msd"]),
        "selected_layers": selected_layers(context),
        "models": models,
    }


def analysed_records(context: Context) -> list[int]:
    """The numbers of `analyse.records` of the probe's records, drawn with the seed, ascending; all of them if
    there are fewer."""
    config = context.config
    probed = probe_records(context.records, config.data.languages, config.probe.records, config.seed)
    wanted = min(config.analyse.records, len(probed))
    return sorted(random.Random(f"analyse {config.seed}").sample(probed, wanted))


def rank_correlation(one: list[float], other: list[float]) -> float | None:
    """Spearman's ρ, equal values sharing their mean rank; None where one list is constant, for then no rank
    differs and ρ is not defined."""
    if min(np.ptp(one), np.ptp(other)) == 0:
        return None
    return float(stats.spearmanr(one, other).statistic)


def _of_model(context: Context, numbers: list[int], name: str) -> dict[str, Any]:
    config = context.config
    tables = _count(context, numbers, name)
    statistics = layer_statistics(tables, tuple(config.data.languages), config.probe.position)

    def by_language(table: NDArray[np.float64]) -> dict[str, list[float]]:
        return {language: table[:, g].tolist() for g, language in enumerate(statistics.languages)}

    return {
        "overlap": by_language(statistics.overlap),
        "jaccard": by_language(statistics.jaccard),
        "active": by_language(statistics.active),
        "curve": statistics.curve(config.selection.overlap).tolist(),
        "msd": statistics.msd(config.selection.reference).tolist(),
        "would_select": _would_select(statistics, context),
    }


def _would_select(statistics: LayerStatistics, context: Context) -> list[int] | None:
    """The layers that the run's strategy chooses by these statistics; None where it refuses to choose."""
    try:
        return list(select_layers(statistics, context.config.selection, context.config.seed).selected)
    except UserError:
        return None


def _count(context: Context, numbers: list[int], name: str) -> Mapping[str, NDArray[np.integer]]:
    """The tables of `statistics.safetensors` for these records and the model as it is, on every rank."""
    config, ranks, lvlm = context.config, context.ranks, context.lvlm
    languages = config.data.languages
    rows = probe_rows(context.prompter, context.records, numbers, config.analyse.tokens_per_row)
    counts = empty_counts(lvlm, len(numbers), len(languages), ranks.device)
    progress = ranks.progress(f"analyse: stability, {name}", len(numbers), "records")
    with counting(lvlm, counts, numbers, languages.index("en"), context.deepspeed) as count, progress:
        for rank_row in shard_rows(rows, ranks.rank, ranks.world):
            if ranks.should_stop():
                raise Interrupted(f"analyse: stopped by a signal in stability, {name}")
            count(rank_row)
            progress.add(min(ranks.world * len(rank_row.trees), len(numbers) - progress.done))
    return {key: ranks.sum(table).cpu().numpy() for key, table in counts.state_dict().items()}
