"""The run's model as it was before and after training, and at each checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter

from plast_train.checkpoint.checkpoints import load_masters
from plast_train.checkpoint.format import BrokenCheckpoint, checkpoints, read_manifest
from plast_train.context import Context
from plast_train.errors import UserError
from plast_train.lvlm.forward import implementation_for
from plast_train.lvlm.freezing import changed_weights
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.lora import MergedWeights
from plast_train.lvlm.weights import load_layers, load_weights, put_weights
from plast_train.run_folder import read_json
from plast_train.scoring.accuracies import BASE, TRAINED

MODELS = (BASE, TRAINED)


def selected_layers(context: Context) -> list[int]:
    return list(read_json(context.run.selection)["selected_layers"])


def load_weights_of(context: Context, name: str, layers: list[int] | None = None) -> Lvlm:
    """Gives the model the weights of `base` or `plast` (what was trained), or of these layers alone. Called
    by every rank."""
    folder = context.run.export if name == TRAINED else context.lvlm.path
    if layers is None:
        load_weights(context.lvlm, folder, _changed(context), context.ranks)
    else:
        load_layers(context.lvlm, folder, layers, context.ranks)
    return context.lvlm


def _changed(context: Context) -> dict[str, Parameter]:
    """The parameters in which the trained model differs from the base."""
    selection, lvlm, train = read_json(context.run.selection), context.lvlm, context.config.train
    layers, modules = selection["selected_layers"], selection["modules"]
    return changed_weights(lvlm.model, lvlm.family, layers, modules, train, context.trains_projector)


def for_rows(context: Context) -> Lvlm:
    """The model with the attention implementation that packed rows are run with."""
    return _attend(context.lvlm, implementation_for(context.ranks.device))


def for_sequences(lvlm: Lvlm) -> Lvlm:
    """The model with an attention implementation that is made for single sequences and for gradients."""
    return _attend(lvlm, "sdpa")


def _attend(lvlm: Lvlm, implementation: str) -> Lvlm:
    set_attention: Any = lvlm.model.set_attn_implementation
    set_attention({"text_config": implementation, "vision_config": "sdpa"})
    return lvlm


def each_checkpoint(context: Context) -> Iterator[int]:
    """The step of each checkpoint that is kept, ascending; the model has its weights then. One that is broken
    or trains other weights is passed over, loudly. Called by every rank."""
    parameters = _changed(context)
    found = context.ranks.on_first(lambda: checkpoints(context.run.checkpoints)[::-1])
    for path in found:
        step: int | None = None
        masters: Mapping[str, torch.Tensor] = {}
        if context.ranks.is_first:
            try:
                step, masters = int(read_manifest(path)["step"]), _weights_of(context, path)
                if set(masters) != set(parameters):
                    raise UserError(f"{path}: is not of this run's layers")
            except (UserError, BrokenCheckpoint) as error:
                step = None
                context.ranks.say(f"WARNING: {path.name} is left out of the analysis: {error}")
        step = context.ranks.broadcast(step)
        if step is not None:
            put_weights(parameters, masters, context.ranks)
            yield step


def _weights_of(context: Context, checkpoint: Path) -> Mapping[str, torch.Tensor]:
    """By the name that the base's parameter has; LoRA adapters are merged into the base's.

    Raises:
        BrokenCheckpoint: it is.
        UserError: it is of another base.
    """
    if read_manifest(checkpoint)["base"] != context.base["fingerprint"]:
        raise UserError(f"{checkpoint}: is not of this run's base")
    masters = load_masters(checkpoint)
    train = context.config.train
    return MergedWeights(context.lvlm.path, masters, train.lora_scale) if train.method == "lora" else masters
