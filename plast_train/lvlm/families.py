"""One description per model family: where its decoder layers and gates are, how a chat is written.

A further family is a further entry in `FAMILIES`; nothing else in the program names a module's path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from plast_train.errors import UserError, nearest


@dataclass(frozen=True)
class ChatFormat:
    """A single-turn chat. The image placeholder comes first in the user's turn."""

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
    """Where the parts of a family's `…ForConditionalGeneration` are (dotted attribute paths)."""

    model_type: str
    architecture: str
    decoder_path: str
    vision_path: str
    gate_path: str
    attention_norm_path: str
    chat: ChatFormat

    def decoder(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.decoder_path)

    def layers(self, model: nn.Module) -> list[nn.Module]:
        layers = self.decoder(model).layers
        assert isinstance(layers, nn.ModuleList)
        return list(layers)

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

FAMILIES = {
    "llava": Family(
        model_type="llava",
        architecture="LlavaForConditionalGeneration",
        decoder_path="model.language_model",
        vision_path="model.vision_tower",
        gate_path="mlp.act_fn",
        attention_norm_path="post_attention_layernorm",
        chat=LLAVA_CHAT,
    ),
}


def family_of(config: dict[str, Any], where: str) -> Family:
    """The family of a model's config.json.

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
        raise UserError(f"{where}: architecture {architectures} where {family.architecture} is needed")
    return family
