"""LoRA adapters (Hu et al. 2021) beside the base's own linear layers, through peft: adding them, removing
them, and merging them into the base's weights.

An adapter adds `α/r · B A x` to `W x`; `A` `[r, inputs]` begins random, `B` `[outputs, r]` begins at zero, so
the adapted model begins as the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from plast_train.config import TrainConfig
from plast_train.lvlm.families import Family
from plast_train.lvlm.freezing import linear_layers
from plast_train.lvlm.weights import disk_tensors, read_tensor

_FIRST, _SECOND = ".lora_A.default.weight", ".lora_B.default.weight"  # as peft names them


def add_adapters(
    model: nn.Module, family: Family, layers: Sequence[int], modules: str, train: TrainConfig, seed: int
) -> dict[str, nn.Parameter]:
    """Puts adapters beside every linear layer of the selected decoder layers and returns their parameters by
    name. `A` is drawn from `seed` alone, so that every rank begins with the same.

    Raises:
        UserError: see `freezing.trainable_parameters`.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    targets = linear_layers(model, family, layers, modules)
    assert train.lora_rank is not None
    config = LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_scale * train.lora_rank,  # type: ignore[arg-type]  # peft takes floats, too
        target_modules=list(targets),
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random state must not depend on adapters
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    # peft matches names by their ends, so the same name in the vision tower could be adapted as well.
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if adapted != set(targets):
        raise RuntimeError(f"peft did not adapt the requested layers alone: {sorted(adapted ^ set(targets))}")
    return {name: p for name, p in model.named_parameters() if name.endswith((_FIRST, _SECOND))}


def remove_adapters(model: nn.Module) -> None:
    """Puts the base's own linear layers, which the adapters never changed, back into their places."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def is_second(name: str) -> bool:
    """Whether a parameter is a `B`. Only these get a gradient while every `B` is zero, as the gradient of `A`
    is a product with `B`."""
    return name.endswith(_SECOND)


class MergedWeights(Mapping[str, torch.Tensor]):
    """The adapted layers' weights `W + α/r · B A`, fp32, by the name the base's parameter has. Each is
    computed when it is read, from the base's file and the adapters."""

    def __init__(self, base: Path, adapters: Mapping[str, torch.Tensor], scale: float) -> None:
        self._adapters, self._scale = adapters, scale
        targets = [name.removesuffix(_FIRST) for name in adapters if name.endswith(_FIRST)]
        self._stored = disk_tensors(base, [f"{target}.weight" for target in targets])

    def __getitem__(self, name: str) -> torch.Tensor:
        target = name.removesuffix(".weight")
        first, second = self._adapters[target + _FIRST], self._adapters[target + _SECOND]
        return read_tensor(self._stored[name]).float() + self._scale * (second @ first)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
