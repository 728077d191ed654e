"""Which runs an ablation is made of: one for each variant and seed, less those that would repeat another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plast_train.comparison.variants import Variant, other_variants, variant_config, wanted
from plast_train.config import Config
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, read_json

# The stages of each run. Its report, and whatever else a run can do, can be asked for afterwards.
STAGES = ("collect", "select", "train", "export", "evaluate")


@dataclass(frozen=True)
class Entry:
    """A variant with one seed: the run that is its result, or why there is none."""

    variant: Variant
    seed: int
    layers: tuple[int, ...]
    config: Config
    run: str | None
    refused: str | None = None


def run_name(variant: Variant, seed: int) -> str:
    return f"{variant.name}-seed-{seed}"


def first_entries(config: Config, variant: Variant, seeds: Sequence[int]) -> list[Entry]:
    """The recipe's own selection, whose layers are not known before its run has selected them."""
    return [
        Entry(variant, seed, (), variant_config(config, variant, seed), run_name(variant, seed))
        for seed in seeds
    ]


def selected_layers(run: RunFolder) -> tuple[int, ...]:
    return tuple(read_json(run.selection)["selected_layers"])


def plan_entries(
    config: Config, first: Sequence[Entry], runs: Path, images: bool, uneven: bool
) -> list[Entry]:
    """All entries. `first` are those of the recipe's own selection, with their layers known; `runs` is the
    folder that their runs are in; `images` and `uneven`: see `other_variants`. With each seed the others get
    as many layers as the recipe's selection chose with it. A variant that trains the same as one before it
    shares that run."""
    entries = list(first)
    trained = {_identity(entry.config, entry.layers): entry.run for entry in entries}
    by_seed = [
        wanted(
            other_variants(config, len(start.layers), images, uneven),
            config.ablate.variants,
            [start.variant.name],
        )
        for start in first
    ]
    for variants in zip(*by_seed, strict=True):
        for variant, start in zip(variants, first, strict=True):
            made = variant_config(config, variant, start.seed)
            assert start.run is not None
            try:
                layers = _layers(made, RunFolder(runs / start.run))
            except UserError as error:
                why = str(error).partition("\n")[0]
                entries.append(Entry(variant, start.seed, (), made, None, why))
                continue
            run = trained.setdefault(_identity(made, layers), run_name(variant, start.seed))
            entries.append(Entry(variant, start.seed, layers, made, run))
    return entries


def _layers(config: Config, probed: RunFolder) -> tuple[int, ...]:
    """What the stage `select` will choose with the statistics of `probed`."""
    from safetensors.numpy import load_file

    from plast_train.neurons.statistics import layer_statistics
    from plast_train.neurons.strategies import select_layers

    statistics = layer_statistics(
        load_file(probed.statistics), tuple(config.data.languages), config.probe.position
    )
    return select_layers(statistics, config.selection, config.seed).selected


def _identity(config: Config, layers: Sequence[int]) -> str:
    """Equal where the trained weights are: how the layers were chosen is of no account."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude={"selection", "ablate"})
    return json.dumps([tree, list(layers), config.selection.modules], sort_keys=True)
