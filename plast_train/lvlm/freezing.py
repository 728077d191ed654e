"""What is trained: whole selected decoder layers, or their FFN or attention; LoRA adapters beside them; or
everything but the vision tower. All the rest is frozen.

Layers are matched by the decoder's module, never by a name: the vision tower has layers of the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from plast_train.config import TrainConfig
from plast_train.errors import UserError
from plast_train.lvlm.families import Family


def trainable_parameters(
    model: nn.Module, family: Family, layers: Sequence[int], modules: str
) -> dict[str, nn.Parameter]:
    """The parameters of the selected decoder layers, by their name in `model.named_parameters()`.

    `modules` is `all` (attention, FFN and norms), `ffn` or `attention`.

    Raises:
        UserError: no layer, or a layer that the model does not have.
    """
    chosen = {id(p) for part in _selected(model, family, layers, modules) for p in part.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in chosen}


def linear_layers(
    model: nn.Module, family: Family, layers: Sequence[int], modules: str
) -> dict[str, nn.Linear]:
    """The linear layers within the selected decoder layers, by name: those that LoRA adapts.

    Raises:
        UserError: see `trainable_parameters`.
    """
    chosen = {id(m) for part in _selected(model, family, layers, modules) for m in part.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in chosen and isinstance(module, nn.Linear)
    }


def _selected(model: nn.Module, family: Family, layers: Sequence[int], modules: str) -> list[nn.Module]:
    decoder = family.layers(model)
    if not layers or not all(0 <= number < len(decoder) for number in layers):
        raise UserError(
            f"selected layers {list(layers)}: the model's decoder has layers 0 to {len(decoder) - 1}"
        )
    return [family.part(decoder[number], modules) for number in layers]


def all_parameters(model: nn.Module, family: Family, images: bool) -> dict[str, nn.Parameter]:
    """Every parameter but the vision tower's, by name: embeddings, projector, decoder and head. The projector
    is left out, too, unless every sample has one of the `images`."""
    frozen = {id(p) for p in model.get_submodule(family.vision_path).parameters()}
    if not images:
        # A step without images has no gradient for the projector, and ZeRO-3 would reuse the previous step's.
        frozen |= {id(p) for p in projector_parameters(model, family).values()}
    return {name: p for name, p in model.named_parameters() if id(p) not in frozen}


def projector_parameters(model: nn.Module, family: Family) -> dict[str, nn.Parameter]:
    """What lies between vision tower and decoder: all that is in neither of them, nor in the head."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    parts = [model.get_submodule(family.vision_path), family.decoder(model), head]
    others = {id(p) for part in parts for p in part.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in others}


def changed_weights(
    model: nn.Module, family: Family, layers: Sequence[int], modules: str, train: TrainConfig, images: bool
) -> dict[str, nn.Parameter]:
    """The base's own parameters that `train.method` changes, by name; for LoRA, those that the adapters are
    merged into. `images`: whether every training sample has one (asked under `full` alone)."""
    if train.method == "full":
        return all_parameters(model, family, images)
    if train.method == "lora":
        names = {f"{name}.weight" for name in linear_layers(model, family, layers, modules)}
        return {name: p for name, p in model.named_parameters() if name in names}
    return trainable_parameters(model, family, layers, modules)


def what_is_trained(train: TrainConfig, layers: Sequence[int], modules: str) -> str:
    """`train.method` and the selection in words."""
    if train.method == "full":
        return "everything but the vision tower"
    adapters = f"LoRA adapters of rank {train.lora_rank} on " if train.method == "lora" else ""
    return f"{adapters}layers {list(layers)} ({modules})"


def freeze_all_but(model: nn.Module, trained: dict[str, nn.Parameter]) -> None:
    """Switches gradients on for the trained parameters and off for all others."""
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
