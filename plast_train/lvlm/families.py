"""One record per model family: where its parts are, how a chat is written, how many tokens an image takes.

To add a family, add a `Family` to `FAMILIES` under its config.json's `model_type`. Nothing else in the
program names a module's path. What a family must have: a vision tower; a decoder with the list
`layers`, in each of these an FFN with a gate (`act(W_gate x)`) whose activation is a module of its own; and
one placeholder token for an image in the text, repeated once for each of the image's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from plast_train.errors import UserError, nearest


@dataclass(frozen=True)
class ChatFormat:
    """A single-turn chat. The image's placeholder comes first in the user's turn."""

    system: str
    image: str
    end: str

    def opening(self, with_image: bool) -> str:
        """What precedes the user's text."""
        return f"{self.system} USER: {self.image if with_image else ''}"

    def prompt(self, text: str, with_image: bool) -> str:
        """Everything up to and including the turn that asks for the reply."""
        return f"{self.opening(with_image)}{text} ASSISTANT:"

    def reply(self, text: str) -> str:
        """What follows the prompt in a training sample."""
        return f" {text}{self.end}"


@dataclass(frozen=True)
class Family:
    """A family's `…ForConditionalGeneration` (`architecture`), described by dotted attribute paths.

    `decoder_path` and `vision_path` begin at the model; `ffn_path`, `attention_path`, `gate_path` (the module
    whose output is the gate's activation) and `attention_norm_path` (the norm after the attention, before the
    FFN) begin at a decoder layer. `image_token_key` is the config.json key of the placeholder's token id;
    `num_image_tokens` counts an image's tokens from a complete config.
    """

    architecture: str
    decoder_path: str
    vision_path: str
    ffn_path: str
    attention_path: str
    gate_path: str
    attention_norm_path: str
    image_token_key: str
    num_image_tokens: Callable[[dict[str, Any]], int]
    chat: ChatFormat

    def decoder(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.decoder_path)

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The decoder layers, shallowest first."""
        layers = self.decoder(model).layers
        assert isinstance(layers, nn.ModuleList)
        return list(layers)

    def part(self, layer: nn.Module, modules: str) -> nn.Module:
        """The part of a decoder layer that `selection.modules` names: `all`, `ffn` or `attention`."""
        return layer.get_submodule(
            {"all": "", "ffn": self.ffn_path, "attention": self.attention_path}[modules]
        )

    def gate(self, layer: nn.Module) -> nn.Module:
        """The module whose output is the gate's activation `act(W_gate x)` (arXiv 2508.18381)."""
        return layer.get_submodule(self.gate_path)

    def attention_norm(self, layer: nn.Module) -> nn.Module:
        """The norm after the layer's attention, before its FFN."""
        return layer.get_submodule(self.attention_norm_path)


# The sentence and the turns of LLaVA-1.5.
LLAVA_CHAT = ChatFormat(
    system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    image="<image>\n",
    end="</s>",
)


def _num_llava_image_tokens(config: dict[str, Any]) -> int:
    """One a patch, and the class token unless the `default` strategy drops it."""
    vision = config["vision_config"]
    patches: int = (vision["image_size"] // vision["patch_size"]) ** 2
    return patches + (config.get("vision_feature_select_strategy", "default") == "full")


FAMILIES = {
    "llava": Family(
        architecture="LlavaForConditionalGeneration",
        decoder_path="model.language_model",
        vision_path="model.vision_tower",
        ffn_path="mlp",
        attention_path="self_attn",
        gate_path="mlp.act_fn",
        attention_norm_path="post_attention_layernorm",
        image_token_key="image_token_index",
        num_image_tokens=_num_llava_image_tokens,
        chat=LLAVA_CHAT,
    ),
}


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family of a model's config.json, which messages call `where`.

    Raises:
        UserError: a family that is not described here.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise UserError(
            f"{where}: model_type '{model_type}' is not supported{nearest(model_type, FAMILIES)} "
            f"(supported: {', '.join(FAMILIES)}; original LLaVA-1.5 checkpoints too)"
        )
    family = FAMILIES[model_type]
    architectures = config.get("architectures") or [family.architecture]
    if family.architecture not in architectures:
        raise UserError(
            f"{where}: architecture {architectures} is not supported; it must be {family.architecture}"
        )
    return family
