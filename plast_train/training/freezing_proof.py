"""The proof that only what was chosen is trained."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.nn import Module, Parameter

from plast_train.checkpoint.partitions import owned_ranges
from plast_train.lvlm.lora import is_second
from plast_train.runtime.distributed import Ranks
from plast_train.training.state import Training


def shape_of(parameter: Parameter) -> list[int]:
    """The whole tensor's shape, also where ZeRO-3 left this rank only a part of it."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


def describe_freezing(model: Module, trained: dict[str, Parameter]) -> dict[str, Any]:
    """Names and counts of what is trained and what is not, and the trained fraction.

    Raises:
        RuntimeError: gradients are enabled for other parameters than the trained ones.
    """
    with_gradient = {name for name, p in model.named_parameters() if p.requires_grad}
    if with_gradient != set(trained):
        raise RuntimeError(
            "gradients are not enabled for exactly the selected tensors; these differ: "
            f"{sorted(with_gradient ^ set(trained))}"
        )
    total = sum(torch.Size(shape_of(p)).numel() for p in model.parameters())
    elements = sum(torch.Size(shape_of(p)).numel() for p in trained.values())
    return {
        "trained_tensors": list(trained),
        "trained_parameters": elements,
        "frozen_parameters": total - elements,
        "trained_fraction": elements / total,
    }


def frozen_hashes(model: Module, trained: dict[str, Parameter]) -> dict[str, str]:
    """SHA-256 of every frozen tensor's bytes, of this rank's partition under ZeRO-3."""
    return {
        name: _hash(getattr(parameter, "ds_tensor", parameter))
        for name, parameter in model.named_parameters()
        if name not in trained
    }


def require_unchanged(before: dict[str, str], after: dict[str, str], ranks: Ranks) -> None:
    """Raises RuntimeError on every rank if a frozen tensor changed on any."""
    changed = {name for part in ranks.gather([n for n in before if after[n] != before[n]]) for name in part}
    if changed:
        raise RuntimeError(f"frozen tensors changed during training: {sorted(changed)}")


def require_gradients(training: Training, steps: int) -> None:
    """Checks that the first `steps` steps gave every trained tensor a gradient. Adam's first moment shows it:
    it is a decaying mean of all gradients so far.

    Raises:
        RuntimeError: names the tensors whose gradient was zero in every element.
    """
    here = [
        owned.name for owned in owned_ranges(training.engine, training.trained) if bool(owned.views[1].any())
    ]
    seen = {name for part in training.ranks.gather(here) for name in part}
    # While every B of LoRA is zero, no A has a gradient: they are expected from the second step on.
    only_second = training.config.train.method == "lora" and steps == 1
    expected = {name for name in training.trained if is_second(name) or not only_second}
    if missing := expected - seen:
        raise RuntimeError(f"trained tensors got no gradient: {sorted(missing)}")


def _hash(tensor: torch.Tensor) -> str:
    content = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(content).hexdigest()  # type: ignore[arg-type]
