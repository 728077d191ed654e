"""The variants of an ablation and their runs: the recipe's own selection and what it is compared with, all on
the same data and steps. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plast_train.config import Config, with_values
from plast_train.errors import UserError, nearest
from plast_train.run_folder import RunFolder, read_json

# The stages of each run. Its report and analyses can be made afterwards with the ordinary commands.
STAGES = ("collect", "select", "train", "export", "evaluate")
# Rank of the adapters where neither recipe nor `ablate.only` gives one; Hu et al. 2021 find little difference
# between ranks of 4 to 64.
LORA_RANK = 16
PER_TEMPLATE = 8
# Between T=1, pairs as they are, and T=∞, all languages alike; mT5 (Xue et al. 2021) takes 1/0.3.
TEMPERATURE = 3.33


@dataclass(frozen=True)
class Variant:
    """`changes` are the values, by dotted key, that differ from the recipe; `description` is for tables."""

    name: str
    description: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A variant with one seed: the run that is its result, or the reason why there is none."""

    variant: Variant
    seed: int
    layers: tuple[int, ...]
    config: Config
    run: str | None
    refused: str | None = None


def selected_variant(config: Config) -> Variant:
    """The recipe's own selection, named by its strategy: the others are compared with it."""
    return Variant(config.selection.strategy, "the recipe", {})


def other_variants(config: Config, k: int, images: bool, uneven: bool) -> list[Variant]:
    """The other variants, without those that would be the recipe itself.

    Args:
        k: how many layers the recipe's own selection chose.
        images: whether any record has an image.
        uneven: whether some languages have fewer pairs than others, which sampling can balance.
    """
    train = config.train
    # A recipe's LoRA stays where a variant is about other layers; full training leaves no layers to choose.
    chosen: dict[str, Any] = {"train.method": "layers"} if train.method == "full" else {}

    def by_number(strategy: str) -> dict[str, Any]:
        return chosen | {"selection.strategy": strategy, "selection.k": k, "selection.layers": []}

    every: dict[str, Any] = {"selection.strategy": "all", "selection.k": None, "selection.layers": []}
    whole = every | {"selection.modules": "all"}
    lora = {"train.method": "lora", "train.lora_rank": train.lora_rank or LORA_RANK}
    full = {"train.method": "full", "train.lora_rank": None, "train.lora_alpha": None}
    variants = [
        Variant("shallowest", "as many layers, the shallowest", by_number("shallowest")),
        Variant("middle", "as many, in the middle", by_number("middle")),
        Variant("deepest", "as many, the deepest", by_number("deepest")),
        Variant("random", "as many at random, others for each seed", by_number("random")),
        Variant("all", "every layer", every),
        Variant("ffn", "FFN of the selected layers", chosen | {"selection.modules": "ffn"}),
        Variant("attention", "attention of the selected layers", chosen | {"selection.modules": "attention"}),
        Variant("lora", "LoRA adapters on every layer", whole | lora),
        Variant("full", "everything but the vision tower", whole | full),
    ]
    if config.selection.strategy == "msd":
        for rule in ("candidates", "all_layers"):
            description = f"MSD above the mean over {rule.replace('_', ' ')}"
            variants.append(Variant(f"threshold_{rule}", description, {"selection.threshold": rule}))
    if images:
        other = not train.image_in_training
        name, image = ("with_image", "with the image") if other else ("text_only", "without the image")
        variants.append(Variant(name, f"training {image}", {"train.image_in_training": other}))
    if uneven:
        by_root = {"sampling.languages": "temperature", "sampling.temperature": TEMPERATURE}
        balanced = {"sampling.languages": "balanced", "sampling.temperature": None}
        variants += [
            Variant("temperature", f"languages by their pairs to the power of 1/{TEMPERATURE:g}", by_root),
            Variant("balanced", "as much of every language", balanced),
        ]
    deduplicated = {"sampling.per_template": PER_TEMPLATE}
    hardest = {"sampling.keep": 0.5, "sampling.keep_by": "hardest"}
    by_overlap = {"sampling.languages": "overlap", "sampling.temperature": None}
    variants += [
        Variant("deduplicated", f"at most {PER_TEMPLATE} records of a template", deduplicated),
        Variant("hardest", "the half of the pairs that the base finds hardest", hardest),
        Variant("by_overlap", "more of the languages that overlap least with English", by_overlap),
    ]
    taken = selected_variant(config).name
    return [variant for variant in variants if variant.name != taken]


def variant_config(config: Config, variant: Variant, seed: int) -> Config:
    """The config of one run: the variant's changes over the recipe, then those of `ablate.only`.

    Raises:
        UserError: the changes contradict the recipe or each other.
    """
    changed = with_values(config, {**variant.changes, "seed": seed}, f"ablation, variant {variant.name}")
    own = config.ablate.only.get(variant.name, {})
    return with_values(changed, own, f"ablate.only, variant {variant.name}")


def wanted(variants: Sequence[Variant], names: Sequence[str], also: Sequence[str]) -> list[Variant]:
    """The variants that `names` has; all where it is empty. `also` are further names that it may have.

    Raises:
        UserError: an unknown name.
    """
    known = [*also, *(variant.name for variant in variants)]
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise UserError(f"unknown variant '{name}'{nearest(name, known)}; this recipe has {listed}")
    return [variant for variant in variants if not names or variant.name in names]


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
    """All entries: a run for each variant and seed, except those that would repeat another.

    With each seed the others get as many layers as the recipe's own selection chose with it. A variant that
    trains the same as one before it shares that run.

    Args:
        first: the entries of the recipe's own selection, with their layers known.
        runs: the folder with their runs.
        images, uneven: see `other_variants`.
    """
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
            own = variant_config(config, variant, start.seed)
            assert start.run is not None
            try:
                layers = _layers(own, RunFolder(runs / start.run))
            except UserError as error:  # e.g. no layer is above the threshold: a result, not a failure
                reason = str(error).partition("\n")[0]
                entries.append(Entry(variant, start.seed, (), own, None, reason))
                continue
            run = trained.setdefault(_identity(own, layers), run_name(variant, start.seed))
            entries.append(Entry(variant, start.seed, layers, own, run))
    return entries


def _layers(config: Config, probed: RunFolder) -> tuple[int, ...]:
    """The layers that the stage `select` will choose from the statistics of `probed`."""
    from safetensors.numpy import load_file

    from plast_train.neurons.statistics import layer_statistics
    from plast_train.neurons.strategies import select_layers

    statistics = layer_statistics(
        load_file(probed.statistics), tuple(config.data.languages), config.probe.position
    )
    return select_layers(statistics, config.selection, config.seed).selected


def _identity(config: Config, layers: Sequence[int]) -> str:
    """Equal for runs that train the same weights; how their layers were chosen makes no difference."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude={"selection", "ablate"})
    return json.dumps([tree, list(layers), config.selection.modules], sort_keys=True)
