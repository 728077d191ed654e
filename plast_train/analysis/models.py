"""The run's model as it was before and after training, and at each checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from plast_train.checkpoint.checkpoints import load_masters
from plast_train.checkpoint.format import BrokenCheckpoint, checkpoints, read_manifest
from plast_train.context import Context
from plast_train.errors import UserError
from plast_train.lvlm.attention import implementation_for, set_attention
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
        load_weights(context.lvlm, folder, context.changed_parameters(), context.ranks)
    else:
        load_layers(context.lvlm, folder, layers, context.ranks)
    return context.lvlm


def for_rows(context: Context) -> Lvlm:
    """The model with the attention implementation that packed rows are run with."""
    set_attention(context.lvlm.model, implementation_for(context.ranks.device))
    return context.lvlm


def for_sequences(lvlm: Lvlm) -> Lvlm:
    """The model with an attention implementation that is made for single sequences and for gradients."""
    set_attention(lvlm.model, "sdpa")
    return lvlm


def each_checkpoint(context: Context) -> Iterator[int]:
    """The step of each checkpoint that is kept, ascending; the model has its weights then. One that is broken
    or trains other weights is left out with a warning. Called by every rank."""
    parameters = context.changed_parameters()
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
