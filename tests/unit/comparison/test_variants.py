"""The variants of an ablation: what they change, which share a run, and what runs take from each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.commands import ablate
from plast_train.comparison.sharing import share
from plast_train.comparison.variants import (
    Variant,
    first_entries,
    other_variants,
    plan_entries,
    selected_variant,
    variant_config,
    wanted,
)
from plast_train.config import Config, load_config, with_values
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, publish_text
from plast_train.stages import inputs_of, is_done, settings_of

LANGUAGES = ["en", "pt", "zh"]


def tiny(**values: Any) -> Config:
    return with_values(load_config("tiny"), values, "test")


def test_variants_differ_in_what_they_are_called_by() -> None:
    config = tiny()
    variants = other_variants(config, 2, images=True, uneven=False)
    configs = {v.name: variant_config(config, v, 5) for v in variants}
    assert {c.seed for c in configs.values()} == {5}
    for name in ("random", "shallowest", "middle", "deepest"):
        assert (configs[name].selection.strategy, configs[name].selection.k) == (name, 2)
    assert configs["full"].train.method == "full" and configs["full"].selection.strategy == "all"
    assert configs["lora"].train.lora_rank == 16
    assert configs["text_only"].train.image_in_training is False
    assert configs["ffn"].selection.strategy == "msd" and configs["ffn"].selection.modules == "ffn"
    assert {"threshold_candidates", "threshold_all_layers"} <= set(configs)
    assert configs["hardest"].sampling.keep == 0.5
    uneven = {
        v.name: variant_config(config, v, 5).sampling
        for v in other_variants(config, 2, images=True, uneven=True)
    }
    assert uneven["balanced"].languages == "balanced" and "balanced" not in configs
    assert (uneven["temperature"].languages, uneven["temperature"].temperature) == ("temperature", 3.33)
    assert "text_only" not in {v.name for v in other_variants(config, 2, images=False, uneven=False)}
    own = tiny(**{"selection.strategy": "deepest", "selection.k": 1})
    assert selected_variant(own).name == "deepest"
    names = {v.name for v in other_variants(own, 1, images=True, uneven=False)}
    assert "deepest" not in names and "threshold_candidates" not in names


@pytest.mark.parametrize(
    "recipe",
    [
        {"train.method": "lora", "train.lora_rank": 8, "train.lora_alpha": 4.0},
        {"train.method": "full", "selection.strategy": "all"},
    ],
)
def test_every_variant_fits_a_recipe_that_trains_otherwise(recipe: dict[str, Any]) -> None:
    config = tiny(**recipe)
    variants = other_variants(config, 2, images=True, uneven=False)
    trains = {v.name: variant_config(config, v, 0).train for v in variants}
    lora = recipe["train.method"] == "lora"
    kept = ("lora", 8, 4.0) if lora else ("layers", None, None)
    for name in ("shallowest", "middle", "deepest", "random", "ffn", "attention"):
        train = trains[name]
        assert (train.method, train.lora_rank, train.lora_alpha) == kept
    assert (trains["lora"].method, trains["lora"].lora_rank) == ("lora", 8 if lora else 16)
    assert (trains["full"].method, trains["full"].lora_rank, trains["full"].lora_alpha) == (
        "full",
        None,
        None,
    )
    assert trains["text_only"] == config.train.model_copy(update={"image_in_training": False})


def test_only_wanted_variants_are_checked() -> None:
    wrong = {"full": {"train.lora_rank": 8}}  # has no meaning with full training
    ablate._check_variants(tiny(**{"ablate.only": wrong, "ablate.variants": ["shallowest"]}))
    with pytest.raises(UserError, match="variant full"):
        ablate._check_variants(tiny(**{"ablate.only": wrong, "ablate.variants": ["full"]}))


def test_the_command_line_wins_over_the_values_of_every_run() -> None:
    every = "ablate.every={train.max_steps: 3, train.global_batch: 4}"
    config = ablate._ablation_config("tiny", [every], 2, ["all"])
    assert (config.train.max_steps, config.train.global_batch) == (3, 4)
    assert (config.ablate.seeds, config.ablate.variants) == (2, ["all"])
    config = ablate._ablation_config("tiny", [every, "train.max_steps=5"], None, [])
    assert (config.train.max_steps, config.train.global_batch) == (5, 4)


def test_values_of_the_ablation_s_own_section_are_taken() -> None:
    config = tiny(**{"ablate.only": {"lora": {"train.learning_rate": 0.5, "train.lora_rank": 4}}})
    lora = next(v for v in other_variants(config, 1, images=True, uneven=False) if v.name == "lora")
    made = variant_config(config, lora, 0)
    assert (made.train.learning_rate, made.train.lora_rank) == (0.5, 4)
    with pytest.raises(UserError, match=r"ablate\.only.*unknown key 'train\.learning_rat'.*learning_rate"):
        variant_config(tiny(**{"ablate.only": {"lora": {"train.learning_rat": 1}}}), lora, 0)
    with pytest.raises(UserError, match="did you mean 'deepest'"):
        wanted([Variant("deepest", "", {})], ["deepset"], ["msd"])
    assert (
        wanted([Variant("deepest", "", {}), Variant("all", "", {})], ["all", "msd"], ["msd"])[0].name == "all"
    )


def probed(run: Path) -> None:
    """Statistics of a decoder of four layers, of which layer 0 alone stands out by the MSD rule."""
    active = torch.full((5, 4, 3), 10, dtype=torch.int32)
    active[:, 0] = torch.tensor([10, 20, 30])
    active[:, 1, 2] = 11
    shared = torch.tensor([2, 3, 9, 9], dtype=torch.int32)[None, :, None].expand(5, 4, 3).contiguous()
    shared[:, :, 0] = 10
    (run / "activations").mkdir(parents=True)
    save_file(
        {"active": active, "shared_with_english": shared}, run / "activations" / "statistics.safetensors"
    )


def test_a_variant_that_trains_the_same_shares_the_run(tmp_path: Path) -> None:
    config = tiny(**{"data.languages": LANGUAGES})
    own = selected_variant(config)
    first = [replace(entry, layers=(0,)) for entry in first_entries(config, own, [0, 1])]
    for entry in first:
        probed(tmp_path / str(entry.run))
    entries = {
        (e.variant.name, e.seed): e for e in plan_entries(config, first, tmp_path, images=True, uneven=False)
    }
    assert len(entries) == 2 * (1 + len(other_variants(config, 1, images=True, uneven=False)))
    for name in ("shallowest", "threshold_candidates", "threshold_all_layers"):
        assert (entries[name, 1].layers, entries[name, 1].run) == ((0,), "msd-seed-1")
    for name, layers in (("deepest", (3,)), ("middle", (1,)), ("all", (0, 1, 2, 3)), ("ffn", (0,))):
        assert (entries[name, 0].layers, entries[name, 0].run) == (layers, f"{name}-seed-0")
    assert entries["full", 0].run == "full-seed-0" and entries["lora", 0].layers == (0, 1, 2, 3)
    drawn = {seed: entries["random", seed] for seed in (0, 1)}
    for seed, entry in drawn.items():
        same = {(0,): "msd", (1,): "middle", (3,): "deepest"}.get(entry.layers, "random")
        assert entry.run == f"{same}-seed-{seed}" and len(entry.layers) == 1


def test_a_rule_that_selects_nothing_is_told_and_not_run(tmp_path: Path) -> None:
    config = tiny(**{"data.languages": LANGUAGES, "ablate.variants": ["threshold_all_layers"]})
    first = [replace(e, layers=(0,)) for e in first_entries(config, selected_variant(config), [0])]
    probed(tmp_path / "msd-seed-0")
    path = tmp_path / "msd-seed-0" / "activations" / "statistics.safetensors"
    tables = load_file(path)
    tables["active"][:, 2:, 2] = 60  # the mean over all layers is then above every candidate's
    save_file(tables, path)
    _, entry = plan_entries(config, first, tmp_path, images=True, uneven=False)
    assert entry.run is None and "no layer selected" in str(entry.refused)


def test_a_probe_is_shared_only_where_it_is_the_run_s_own(tmp_path: Path) -> None:
    config, base = tiny(), {"fingerprint": "f"}
    first = RunFolder(tmp_path / "first")
    for name in ("first", "same", "seed", "torn"):
        publish_text(tmp_path / name / "records.jsonl", "{}\n")
    publish_text(first.statistics, "tables")
    publish_text(first.evaluation / "parts" / "base" / "rank-0.jsonl", "{}\n")
    inputs = inputs_of("collect", config, first, base)
    assert inputs is not None
    first.publish_record("collect", settings_of("collect", config), inputs, [first.statistics])

    def shared(name: str, config: Config) -> RunFolder:
        run = RunFolder(tmp_path / name)
        share(SimpleNamespace(config=config, run=run, base=base))  # type: ignore[arg-type]
        return run

    same = shared("same", config)
    assert is_done("collect", config, same, base) and same.statistics.samefile(first.statistics)
    assert not same.evaluation.exists()  # the base's answers are taken when all of them are there
    first.publish_record("evaluate", {}, {}, [])
    assert (shared("same", config).evaluation / "parts" / "base" / "rank-0.jsonl").is_file()
    assert shared("seed", tiny(seed=1)).record("collect") is None
    publish_text(first.statistics, "others")
    publish_text(same.statistics, "others")
    assert shared("torn", config).record("collect") is None
