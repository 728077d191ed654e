"""What is trained: whole selected decoder layers, or their FFN or attention; everything else is frozen.

Layers are matched by the decoder's module, never by a name: the vision tower has layers of the same name.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from plast_train.errors import UserError
from plast_train.lvlm.families import Family

_MODULES = {"all": "", "ffn": "mlp", "attention": "self_attn"}


def trainable_parameters(
    model: nn.Module, family: Family, layers: Sequence[int], modules: str
) -> dict[str, nn.Parameter]:
    """The parameters of the selected decoder layers, by their name in `model.named_parameters()`.

    `modules` is `all` (attention, FFN and norms), `ffn` or `attention`.

    Raises:
        UserError: no layer, or a layer that the model does not have.
    """
    decoder = family.layers(model)
    wrong = [i for i in layers if not 0 <= i < len(decoder)]
    if wrong or not layers:
        raise UserError(
            f"selected layers {list(layers)}: the model's decoder has layers 0 to {len(decoder) - 1}"
        )
    chosen = {
        id(parameter)
        for i in layers
        for parameter in decoder[i].get_submodule(_MODULES[modules]).parameters()
    }
    return {name: p for name, p in model.named_parameters() if id(p) in chosen}


def freeze_all_but(model: nn.Module, trained: dict[str, nn.Parameter]) -> None:
    """Switches gradients off for every parameter and on for the trained ones."""
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
