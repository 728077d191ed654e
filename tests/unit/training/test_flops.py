"""Useful FLOPs: against torch's own counter, known figures and the mask that rows are really run with."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, LlavaForConditionalGeneration

from plast_train.config import TrainConfig
from plast_train.data.packing import pack_row
from plast_train.data.token_tree import Key, TokenSequence, build_tree
from plast_train.lvlm.architectures import KNOWN, read_architecture
from plast_train.lvlm.attention import attention_mask
from plast_train.lvlm.families import FAMILIES
from plast_train.lvlm.freezing import all_parameters, freeze_all_but
from plast_train.lvlm.lora import add_adapters
from plast_train.training.flops import (
    TRAINED_PARTS,
    ModelShape,
    adapter_weights,
    forward_flops,
    image_flops,
    input_gradient_flops,
    recompute_flops,
    row_flops,
    shape_of,
    visible_pairs,
    weight_gradient_flops,
)

TOKENS, LABELS, IMAGES = 100, 15, 2
SUBMODULE = {"all": "", "ffn": "mlp", "attention": "self_attn"}


def small_llava(feature_layer: int = -1) -> LlavaForConditionalGeneration:
    """Eager attention, whose products torch's counter sees; grouped key-value heads."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 8,
    }
    text = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
    }
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=499, vision_feature_layer=feature_layer
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")


def train_layers(model: LlavaForConditionalGeneration, layers: list[int], modules: str) -> None:
    model.requires_grad_(False)
    for layer in layers:
        model.model.language_model.layers[layer].get_submodule(SUBMODULE[modules]).requires_grad_(True)


def counted(model: LlavaForConditionalGeneration) -> tuple[int, int]:
    """torch's count of the forward pass, and of forward and backward. Eager attention computes the whole
    square of the row."""
    ids = torch.randint(0, 400, (1, TOKENS))
    ids[0, : IMAGES * 36] = 499
    inputs: dict[str, Any] = {"input_ids": ids, "pixel_values": torch.randn(IMAGES, 3, 48, 48)}
    with FlopCounterMode(display=False) as counter:
        logits = model(**inputs, logits_to_keep=torch.arange(80, 80 + LABELS), use_cache=False).logits
        forward = counter.get_total_flops()
        logits.logsumexp(-1).sum().backward()
        return forward, counter.get_total_flops()


@pytest.mark.parametrize("modules", ["all", "ffn", "attention"])
@pytest.mark.parametrize("layers", [[0], [0, 1], [1, 3], [3]])
def test_row_flops_are_those_torch_counts(layers: list[int], modules: str) -> None:
    model = small_llava()
    train_layers(model, layers, modules)
    shape = shape_of(model.config.to_dict())
    forward, both = counted(model)
    assert forward_flops(shape, TOKENS, TOKENS**2, LABELS, IMAGES) == forward
    assert row_flops(shape, TOKENS, TOKENS**2, LABELS, IMAGES, layers, modules, TrainConfig()) == both


@pytest.mark.parametrize("modules", ["all", "ffn", "attention"])
@pytest.mark.parametrize("layers", [[0], [1, 3]])
def test_lora_flops_are_those_torch_counts(layers: list[int], modules: str) -> None:
    model, train = small_llava(), TrainConfig(method="lora", lora_rank=4)
    adapters = add_adapters(model, FAMILIES["llava"], layers, modules, train, seed=0)
    freeze_all_but(model, adapters)
    shape = shape_of(model.config.to_dict())
    _, both = counted(model)
    assert row_flops(shape, TOKENS, TOKENS**2, LABELS, IMAGES, layers, modules, train) == both
    per_layer = adapter_weights(shape.decoder, modules, 4)
    assert sum(p.numel() for p in adapters.values()) == per_layer * len(layers)


def test_full_flops_are_those_torch_counts() -> None:
    model, train = small_llava(), TrainConfig(method="full")
    freeze_all_but(model, all_parameters(model, FAMILIES["llava"], images=True))
    shape, layers = shape_of(model.config.to_dict()), range(model.config.text_config.num_hidden_layers)
    _, both = counted(model)
    assert row_flops(shape, TOKENS, TOKENS**2, LABELS, IMAGES, layers, "all", train) == both


def test_vision_layers_above_the_one_that_is_used_are_no_useful_work() -> None:
    used, all_layers = (shape_of(small_llava(layer).config.to_dict()) for layer in (-2, -1))
    assert (used.vision.num_layers, all_layers.vision.num_layers) == (2, 3)
    one_layer = 2 * 37 * (4 * 64**2 + 2 * 64 * 128) + 4 * 37**2 * 64
    assert image_flops(all_layers) - image_flops(used) == one_layer


@pytest.mark.parametrize("layers", [[0, 1], [2]])
def test_recompute_repeats_the_layers_that_carry_a_gradient(layers: list[int]) -> None:
    model = small_llava()
    train_layers(model, layers, "all")
    _, kept = counted(model)
    for layer in list(model.model.language_model.layers)[min(layers) :]:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    _, recomputed = counted(model)
    # torch stops recomputing once it has all it needs: the last product of each layer is not repeated.
    last_products = (4 - min(layers)) * 2 * TOKENS * 128 * 344
    expected = recompute_flops(shape_of(model.config.to_dict()), TOKENS, TOKENS**2, layers)
    assert expected - last_products <= recomputed - kept <= expected


def vicuna_7b() -> ModelShape:
    return shape_of(read_architecture(None, "llava-hf/llava-1.5-7b-hf"))


def test_figures_of_the_method() -> None:
    """Known figures of Vicuna-7B: `lm_head` at every token, no attention scores or vision, norms frozen."""
    shape, first_five = vicuna_7b(), range(5)
    weights_alone = TRAINED_PARTS["all"] - {"norms"}
    forward = forward_flops(shape, 1, 0, 1, 0) / 1e9
    inputs = input_gradient_flops(shape, 1, 0, 1, first_five, weights_alone) / 1e9
    weights = weight_gradient_flops(shape, 1, first_five, weights_alone) / 1e9
    assert (round(forward, 1), round(inputs, 1), round(weights, 1)) == (13.2, 13.1, 2.0)
    ours = forward + inputs + weights
    assert round(ours, 1) == 28.4
    full = 3 * forward  # embeddings trained as well, so the gradient passes through every product
    assert round(full, 1) == 39.6 and round(full / ours, 2) == 1.40
    recomputed = full + recompute_flops(shape, 1, 0, [0]) / 1e9
    assert round(recomputed, 1) == 52.6 and round(recomputed / ours, 2) == 1.86


def test_trained_norms_add_the_input_gradients_of_the_lowest_q_k_v() -> None:
    shape = vicuna_7b()
    with_norms = row_flops(shape, 1, 0, 1, 0, range(5), "all", TrainConfig())
    parts = TRAINED_PARTS["all"] - {"norms"}
    without = (
        forward_flops(shape, 1, 0, 1, 0)
        + input_gradient_flops(shape, 1, 0, 1, range(5), parts)
        + weight_gradient_flops(shape, 1, range(5), parts)
    )
    assert with_norms - without == 2 * 3 * 4096**2


def test_pairs_are_those_the_mask_lets_through() -> None:
    def sequence(record: int, language: int, tokens: list[int]) -> TokenSequence:
        return TokenSequence.of(Key(record, language), tuple(tokens), (0, 1))

    trees = [
        build_tree([sequence(0, 0, [1, 2, 3, 4, 5]), sequence(0, 1, [1, 2, 3, 9, 8, 7])]),
        build_tree([sequence(1, 0, [1, 5, 6])]),
    ]
    mask = attention_mask(pack_row(trees), "sdpa", torch.device("cpu"), torch.float32)
    assert visible_pairs(trees) == int((mask == 0).sum())


def test_an_empty_row_costs_nothing() -> None:
    assert row_flops(vicuna_7b(), 0, 0, 0, 0, [0], "all", TrainConfig()) == 0


def test_known_architectures_have_the_sizes_of_their_models() -> None:
    layers = {name: shape_of(read_architecture(None, name)).decoder.num_layers for name in KNOWN}
    assert layers == {"llava-hf/llava-1.5-7b-hf": 32, "llava-hf/llava-1.5-13b-hf": 40}
    assert vicuna_7b().image_tokens == 576
