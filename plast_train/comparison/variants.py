"""The variants of an ablation: the recipe's own selection and what it is held against, all on the same data
and steps. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plast_train.config import Config, with_values
from plast_train.errors import UserError, nearest

# Rank of the adapters where neither recipe nor `ablate.only` gives one; Hu et al. 2021 find ranks of 4 to 64
# about alike.
LORA_RANK = 16
PER_TEMPLATE = 8
# Between T=1, pairs as they are, and T=∞, all languages alike; mT5 (Xue et al. 2021) takes 1/0.3.
TEMPERATURE = 3.33


@dataclass(frozen=True)
class Variant:
    """`changes` are values by dotted key that differ from the recipe; `shows` is for tables."""

    name: str
    shows: str
    changes: Mapping[str, Any]


def selected_variant(config: Config) -> Variant:
    """The recipe's own selection, named by its strategy: what the others are held against."""
    return Variant(config.selection.strategy, "the recipe", {})


def other_variants(config: Config, k: int, images: bool, uneven: bool) -> list[Variant]:
    """The rest; `k` is how many layers the recipe's own selection chose, `images` whether any record has one,
    `uneven` whether some languages have fewer pairs than others, which sampling can balance.
    Those that would be the recipe itself are left out. A recipe's LoRA is kept where a variant is about other
    layers; full training, which leaves no layer to choose, is not."""
    train = config.train
    chosen: dict[str, Any] = {"train.method": "layers"} if train.method == "full" else {}

    def by_number(strategy: str) -> dict[str, Any]:
        return chosen | {"selection.strategy": strategy, "selection.k": k, "selection.layers": []}

    every: dict[str, Any] = {"selection.strategy": "all", "selection.k": None, "selection.layers": []}
    whole = every | {"selection.modules": "all"}
    variants = [
        Variant("shallowest", "as many layers, the shallowest", by_number("shallowest")),
        Variant("middle", "as many, in the middle", by_number("middle")),
        Variant("deepest", "as many, the deepest", by_number("deepest")),
        Variant("random", "as many at random, others for each seed", by_number("random")),
        Variant("all", "every layer", every),
        Variant("ffn", "FFN of the selected layers", chosen | {"selection.modules": "ffn"}),
        Variant("attention", "attention of the selected layers", chosen | {"selection.modules": "attention"}),
        Variant(
            "lora",
            "LoRA adapters on every layer",
            whole | {"train.method": "lora", "train.lora_rank": train.lora_rank or LORA_RANK},
        ),
        Variant(
            "full",
            "everything but the vision tower",
            whole | {"train.method": "full", "train.lora_rank": None, "train.lora_alpha": None},
        ),
    ]
    if config.selection.strategy == "msd":
        for rule in ("candidates", "all_layers"):
            shows = f"MSD above the mean over {rule.replace('_', ' ')}"
            variants.append(Variant(f"threshold_{rule}", shows, {"selection.threshold": rule}))
    if images:
        other = not train.image_in_training
        name, shows = ("with_image", "with the image") if other else ("text_only", "without the image")
        variants.append(Variant(name, f"training {shows}", {"train.image_in_training": other}))
    if uneven:
        by_root = {"sampling.languages": "temperature", "sampling.temperature": TEMPERATURE}
        balanced = {"sampling.languages": "balanced", "sampling.temperature": None}
        variants += [
            Variant("temperature", f"languages by their pairs to the power of 1/{TEMPERATURE:g}", by_root),
            Variant("balanced", "as much of every language", balanced),
        ]
    variants += [
        Variant(
            "deduplicated",
            f"at most {PER_TEMPLATE} records of a template",
            {"sampling.per_template": PER_TEMPLATE},
        ),
        Variant(
            "hardest",
            "the half of the pairs that the base finds hardest",
            {"sampling.keep": 0.5, "sampling.keep_by": "hardest"},
        ),
        Variant(
            "by_overlap",
            "more of the languages that overlap least with English",
            {"sampling.languages": "overlap", "sampling.temperature": None},
        ),
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
    """Those of the variants that are named; all where none is. `also` are names that may be given too.

    Raises:
        UserError: an unknown name.
    """
    known = [*also, *(variant.name for variant in variants)]
    for name in names:
        if name not in known:
            listed = ", ".join(known)
            raise UserError(f"'{name}' is no variant here{nearest(name, known)} (there are {listed})")
    return [variant for variant in variants if not names or variant.name in names]
