"""Useful floating-point operations of packed rows: what a training step needs, and nothing else.

A multiply-add is two operations. Counted: all matrix products of the forward pass, attention scores over the
pairs of tokens that see each other (not the square of a row), `lm_head` at label positions alone, gradients
of inputs from the top down to the lowest trained layer, gradients of trained weights. Not counted: recomputed
activations (`recompute_flops` counts them apart), norms, activation functions, the loss and the optimizer.

With `labels = tokens`, no attention scores, no image and norms frozen this is the usual account: 13.2
forward + 13.1 input gradients + 2.0 weight gradients = 28.4 GFLOP per token for the first 5 of Vicuna-7B's 32
layers, against 39.6 for all. With the norms trained as well, the lowest layer's input norm needs the
gradients of q, k and v's input too: 0.1 more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from plast_train.config import TrainConfig
from plast_train.data.token_tree import TokenTree

# What `selection.modules` trains of a decoder layer (lvlm.freezing).
TRAINED_PARTS = {
    "all": frozenset({"attention", "ffn", "norms"}),
    "ffn": frozenset({"ffn"}),
    "attention": frozenset({"attention"}),
}


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a Llama-like decoder: attention with grouped key-value heads, gated FFN."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    vocab: int

    @property
    def attention_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def qkv_weights(self) -> int:
        return self.hidden * (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention_weights(self) -> int:
        """Weights of q, k, v and o of one layer."""
        return self.qkv_weights + self.attention_width * self.hidden

    @property
    def ffn_weights(self) -> int:
        """Weights of gate, up and down of one layer."""
        return 3 * self.hidden * self.intermediate


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a CLIP vision tower; `num_layers` counts those up to the one whose output is used."""

    hidden: int
    intermediate: int
    num_layers: int
    patches: int
    patch_inputs: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a LLaVA model: vision tower, two-layer projector, decoder."""

    decoder: DecoderShape
    vision: VisionShape
    image_tokens: int


def shape_of(config: dict[str, Any]) -> ModelShape:
    """The sizes in a complete Hugging Face LLaVA config (`model.config.to_dict()`)."""
    text, vision = config["text_config"], config["vision_config"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    layer = config["vision_feature_layer"]
    return ModelShape(
        decoder=DecoderShape(
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            num_heads=text["num_attention_heads"],
            num_kv_heads=text["num_key_value_heads"],
            head_dim=text["head_dim"],
            num_layers=text["num_hidden_layers"],
            vocab=text["vocab_size"],
        ),
        vision=VisionShape(
            hidden=vision["hidden_size"],
            intermediate=vision["intermediate_size"],
            # Hidden state 0 is the embedding, so state n is the output of n layers and -1 that of all.
            num_layers=layer if layer >= 0 else vision["num_hidden_layers"] + 1 + layer,
            patches=patches,
            patch_inputs=vision["num_channels"] * vision["patch_size"] ** 2,
        ),
        image_tokens=patches + (config["vision_feature_select_strategy"] == "full"),
    )


def visible_pairs(trees: Sequence[TokenTree]) -> int:
    """Pairs (query, key) of a packed row in which the query sees the key, itself included."""
    num_pairs = 0
    for tree in trees:
        branches = [s.length - tree.prefix for s in tree.sequences]
        num_pairs += tree.prefix * (tree.prefix + 1) // 2
        num_pairs += sum(branch * tree.prefix + branch * (branch + 1) // 2 for branch in branches)
    return num_pairs


def step_flops(
    shape: ModelShape,
    rows: Sequence[Sequence[TokenTree]],
    selected_layers: Collection[int],
    modules: str,
    train: TrainConfig,
) -> float:
    """Useful operations of one optimizer step over all its packed rows, on all ranks together."""
    return sum(
        row_flops(
            shape,
            num_tokens=sum(tree.tokens for tree in trees),
            num_pairs=visible_pairs(trees),
            num_labels=sum(s.labels for tree in trees for s in tree.sequences),
            num_images=sum(tree.image is not None for tree in trees),
            selected_layers=selected_layers,
            modules=modules,
            train=train,
        )
        for trees in rows
    )


def row_flops(
    shape: ModelShape,
    num_tokens: int,
    num_pairs: int,
    num_labels: int,
    num_images: int,
    selected_layers: Collection[int],
    modules: str,
    train: TrainConfig,
) -> float:
    """Useful operations of one training pass, forward and backward, over a packed row.

    `num_tokens` counts image tokens too, `num_pairs` is from `visible_pairs`, `num_labels` counts positions
    with a loss, `modules` as in `selection.modules`, `train` says by which method they are trained.
    """
    parts = TRAINED_PARTS[modules]
    forward = forward_flops(shape, num_tokens, num_pairs, num_labels, num_images)
    if train.method == "lora":
        assert train.lora_rank is not None
        # Adapters add a forward pass and gradients of inputs and of weights: 2 operations each per token
        # and weight. Norms are not adapted. No gradient is needed through the inputs of the lowest A
        # matrices: those of q, k and v, or, where only FFNs are adapted, of gate and up.
        adapters = adapter_weights(shape.decoder, modules, train.lora_rank)
        lowest_first = train.lora_rank * shape.decoder.hidden * (2 if modules == "ffn" else 3)
        return (
            forward
            + input_gradient_flops(
                shape, num_tokens, num_pairs, num_labels, selected_layers, parts - {"norms"}
            )
            + 6.0 * num_tokens * adapters * len(selected_layers)
            - 2.0 * num_tokens * lowest_first
        )
    layers = input_gradient_flops(shape, num_tokens, num_pairs, num_labels, selected_layers, parts)
    layers += weight_gradient_flops(shape, num_tokens, selected_layers, parts)
    if train.method == "full":
        # Gradients of the head's weights at the labels; of the projector's two matrices, and through its
        # second.
        width, patches = shape.decoder.hidden, num_images * shape.image_tokens
        layers += 2.0 * num_labels * width * shape.decoder.vocab
        layers += 2.0 * patches * (shape.vision.hidden * width + 2 * width * width)
    return forward + layers


def adapter_weights(decoder: DecoderShape, modules: str, rank: int) -> int:
    """Parameters of one layer's adapters: rank times inputs plus outputs of each linear layer."""
    hidden, width, kv = decoder.hidden, decoder.attention_width, decoder.num_kv_heads * decoder.head_dim
    attention = 2 * (hidden + width) + 2 * (hidden + kv)
    ffn = 3 * (hidden + decoder.intermediate)
    parts = TRAINED_PARTS[modules]
    return rank * (("attention" in parts) * attention + ("ffn" in parts) * ffn)


def forward_flops(
    shape: ModelShape, num_tokens: int, num_pairs: int, num_labels: int, num_images: int
) -> float:
    """Forward pass: every layer for every token, `lm_head` at the labels, the vision tower for each image."""
    decoder = shape.decoder
    layers = decoder.num_layers * _layer_forward(decoder, num_tokens, num_pairs)
    return layers + _head(decoder, num_labels) + num_images * image_flops(shape)


def image_flops(shape: ModelShape) -> float:
    """Vision tower and projector for one image (forward alone: both are frozen)."""
    vision, width = shape.vision, shape.decoder.hidden
    positions = vision.patches + 1  # the class token
    linear = 4 * vision.hidden**2 + 2 * vision.hidden * vision.intermediate
    layer = 2.0 * positions * linear + 4.0 * positions**2 * vision.hidden
    embedding = 2.0 * vision.patches * vision.patch_inputs * vision.hidden
    projector = 2.0 * shape.image_tokens * (vision.hidden * width + width * width)
    return embedding + vision.num_layers * layer + projector


def input_gradient_flops(
    shape: ModelShape,
    num_tokens: int,
    num_pairs: int,
    num_labels: int,
    selected_layers: Collection[int],
    parts: Collection[str],
) -> float:
    """Gradients with respect to activations, from the loss down to the lowest trained layer.

    Through a matrix product it costs as much as the product, through attention scores twice as much (both
    factors are activations). In the lowest trained layer only what its trained parts need is computed.
    """
    decoder, lowest = shape.decoder, min(selected_layers)
    above = decoder.num_layers - 1 - lowest
    linear = 2.0 * num_tokens * (decoder.attention_weights + decoder.ffn_weights)
    scores = 2.0 * _scores(decoder, num_pairs)
    # The product `down` always: every choice of modules trains it or something before it.
    bottom = 2.0 * num_tokens * decoder.hidden * decoder.intermediate
    if parts != {"ffn"}:
        bottom = linear - 2.0 * num_tokens * decoder.qkv_weights + scores
    if "norms" in parts:
        bottom = linear + scores
    return _head(decoder, num_labels) + above * (linear + scores) + bottom


def weight_gradient_flops(
    shape: ModelShape, num_tokens: int, selected_layers: Collection[int], parts: Collection[str]
) -> float:
    """Gradients of the trained matrices: each costs as much as the forward product."""
    decoder = shape.decoder
    weights = ("attention" in parts) * decoder.attention_weights + ("ffn" in parts) * decoder.ffn_weights
    return 2.0 * num_tokens * weights * len(selected_layers)


def recompute_flops(
    shape: ModelShape, num_tokens: int, num_pairs: int, selected_layers: Collection[int]
) -> float:
    """What `train.recompute` repeats (no useful work): the forward pass of layers that carry a gradient."""
    decoder = shape.decoder
    return (decoder.num_layers - min(selected_layers)) * _layer_forward(decoder, num_tokens, num_pairs)


def _layer_forward(decoder: DecoderShape, num_tokens: int, num_pairs: int) -> float:
    return 2.0 * num_tokens * (decoder.attention_weights + decoder.ffn_weights) + _scores(decoder, num_pairs)


def _scores(decoder: DecoderShape, num_pairs: int) -> float:
    """Query times key, and weight times value, for every visible pair in every head."""
    return 4.0 * num_pairs * decoder.attention_width


def _head(decoder: DecoderShape, num_labels: int) -> float:
    return 2.0 * num_labels * decoder.hidden * decoder.vocab
