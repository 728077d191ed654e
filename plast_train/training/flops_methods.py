"""Useful floating-point operations of a step by `train.method`; see `training.flops` for what is counted."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from plast_train.config import TrainConfig
from plast_train.data.token_tree import TokenTree
from plast_train.training.flops import (
    TRAINED_PARTS,
    DecoderShape,
    ModelShape,
    forward_flops,
    input_gradient_flops,
    row_flops,
    visible_pairs,
)


def method_flops(
    shape: ModelShape,
    rows: Sequence[Sequence[TokenTree]],
    selected_layers: Collection[int],
    modules: str,
    train: TrainConfig,
) -> float:
    """Useful operations of one optimizer step over all its packed rows, on all ranks together."""
    return sum(
        method_row_flops(
            shape,
            tokens=sum(tree.tokens for tree in trees),
            pairs=visible_pairs(trees),
            labels=sum(s.labels for tree in trees for s in tree.sequences),
            images=sum(tree.image is not None for tree in trees),
            selected_layers=selected_layers,
            modules=modules,
            train=train,
        )
        for trees in rows
    )


def method_row_flops(
    shape: ModelShape,
    tokens: int,
    pairs: int,
    labels: int,
    images: int,
    selected_layers: Collection[int],
    modules: str,
    train: TrainConfig,
) -> float:
    """As `flops.row_flops`, for `train.method`."""
    if train.method != "lora":
        selected = row_flops(shape, tokens, pairs, labels, images, selected_layers, modules)
        return selected + (_beyond_layers(shape, labels, images) if train.method == "full" else 0.0)
    # The base's forward pass, gradients of activations down to the lowest adapted layer, and the adapters:
    # their forward pass and gradients of inputs and of weights take 2 operations a token and weight each.
    assert train.lora_rank is not None
    parts = TRAINED_PARTS[modules] - {"norms"}
    adapters = adapter_weights(shape.decoder, modules, train.lora_rank)
    return (
        forward_flops(shape, tokens, pairs, labels, images)
        + input_gradient_flops(shape, tokens, pairs, labels, selected_layers, parts)
        + 6.0 * tokens * adapters * len(selected_layers)
        - 2.0 * tokens * _lowest_first_weights(shape.decoder, modules, train.lora_rank)
    )


def adapter_weights(decoder: DecoderShape, modules: str, rank: int) -> int:
    """Parameters of one layer's adapters: rank times inputs plus outputs of each linear layer."""
    hidden, width, kv = decoder.hidden, decoder.attention_width, decoder.kv_heads * decoder.head_dim
    attention = 2 * (hidden + width) + 2 * (hidden + kv)
    ffn = 3 * (hidden + decoder.intermediate)
    parts = TRAINED_PARTS[modules]
    return rank * (("attention" in parts) * attention + ("ffn" in parts) * ffn)


def _lowest_first_weights(decoder: DecoderShape, modules: str, rank: int) -> int:
    """Weights of the A matrices of the lowest adapted layer through whose inputs no gradient is needed: those
    of q, k and v, or, where only FFNs are adapted, of gate and up."""
    return rank * decoder.hidden * (2 if modules == "ffn" else 3)


def _beyond_layers(shape: ModelShape, labels: int, images: int) -> float:
    """What full training adds to training every layer: gradients of the head's weights at the labels; of the
    projector's two matrices, and through its second."""
    width, patches = shape.decoder.hidden, images * shape.image_tokens
    head = 2.0 * labels * width * shape.decoder.vocab
    return head + 2.0 * patches * (shape.vision.hidden * width + 2 * width * width)
