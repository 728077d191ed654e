"""What is trained and what is frozen, in a small random LLaVA; LoRA adapters and what they merge into."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.training_runs import make_base, make_config

from plast_train.config import ModelConfig
from plast_train.errors import UserError
from plast_train.lvlm.freezing import (
    all_parameters,
    changed_weights,
    freeze_all_but,
    projector_parameters,
    trainable_parameters,
)
from plast_train.lvlm.loading import Lvlm, describe_base, load_lvlm
from plast_train.lvlm.lora import MergedWeights, add_adapters, remove_adapters
from plast_train.training.freezing_proof import describe_freezing, frozen_hashes, require_unchanged

ATTENTION = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
FFN = {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("freezing"))


@pytest.fixture
def lvlm(base: Path) -> Lvlm:
    config = ModelConfig(path=str(base), dtype="float32")
    return load_lvlm(describe_base(base), config, torch.device("cpu"), None)


def of_layer(number: int, names: set[str]) -> set[str]:
    return {f"model.language_model.layers.{number}.{name}" for name in names}


@pytest.mark.parametrize(
    ("modules", "names"), [("all", ATTENTION | FFN | NORMS), ("ffn", FFN), ("attention", ATTENTION)]
)
def test_the_selected_layers_alone_have_a_gradient(lvlm: Lvlm, modules: str, names: set[str]) -> None:
    lvlm.model.requires_grad_(True)  # whatever it was before
    trained = trainable_parameters(lvlm.model, lvlm.family, [0, 2], modules)
    assert set(trained) == of_layer(0, names) | of_layer(2, names)
    freeze_all_but(lvlm.model, trained)
    assert {name for name, p in lvlm.model.named_parameters() if p.requires_grad} == set(trained)
    proof = describe_freezing(lvlm.model, trained)
    assert proof["trained_parameters"] == sum(p.numel() for p in trained.values())


def test_everything_but_the_vision_tower(lvlm: Lvlm) -> None:
    names = {name for name, _ in lvlm.model.named_parameters()}
    vision = {name for name in names if name.startswith("model.vision_tower.")}
    projector = {name for name in names if name.startswith("model.multi_modal_projector.")}
    assert vision and projector
    assert set(projector_parameters(lvlm.model, lvlm.family)) == projector
    assert set(all_parameters(lvlm.model, lvlm.family, images=True)) == names - vision
    assert set(all_parameters(lvlm.model, lvlm.family, images=False)) == names - vision - projector


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 3]])
def test_layers_that_are_not_there(lvlm: Lvlm, layers: list[int]) -> None:
    with pytest.raises(UserError, match="layers 0 to 2"):
        trainable_parameters(lvlm.model, lvlm.family, layers, "all")


def test_a_changed_frozen_tensor_is_named(lvlm: Lvlm) -> None:
    alone: Any = SimpleNamespace(gather=lambda value: [value])
    trained = trainable_parameters(lvlm.model, lvlm.family, [1], "all")
    freeze_all_but(lvlm.model, trained)
    before = frozen_hashes(lvlm.model, trained)
    assert before.keys() == {name for name, _ in lvlm.model.named_parameters()} - trained.keys()
    with torch.no_grad():
        next(iter(trained.values())).add_(1.0)  # what is trained may change
    require_unchanged(before, frozen_hashes(lvlm.model, trained), alone)
    parameters = dict(lvlm.model.named_parameters())
    with torch.no_grad():
        parameters["lm_head.weight"].view(-1)[-1] += 1e-6
    with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
        require_unchanged(before, frozen_hashes(lvlm.model, trained), alone)
    parameters["lm_head.weight"].requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
        describe_freezing(lvlm.model, trained)


def test_adapters_are_the_same_on_every_rank_and_merge_to_the_adapted_model(lvlm: Lvlm, base: Path) -> None:
    train = make_config(method="lora", lora_rank=4, lora_alpha=12.0).train
    made = {}
    for rank in range(2):
        torch.manual_seed(1000 + rank)  # what a rank did before
        adapters = add_adapters(lvlm.model, lvlm.family, [1], "ffn", train, 3)
        made[rank] = {name: p.detach().clone() for name, p in adapters.items()}
        remove_adapters(lvlm.model)
    assert len(made[0]) == 2 * len(FFN)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    drawn = {name: torch.randn(p.shape) for name, p in made[0].items()}  # B is no longer zero
    merged = MergedWeights(base, drawn, train.lora_scale)
    changed = changed_weights(lvlm.model, lvlm.family, [1], "ffn", train, images=True)
    assert sorted(merged) == sorted(changed) == sorted(of_layer(1, FFN))
    for name, parameter in changed.items():
        target = name.removesuffix(".weight")
        b, a = (drawn[f"{target}.lora_{x}.default.weight"] for x in "BA")
        assert torch.allclose(merged[name], parameter + 12.0 / 4 * (b @ a)), name
