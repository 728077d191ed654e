"""The run's model as it was before and after training, and at each checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from plast_train.checkpoint.format import checkpoints
from plast_train.checkpoint.restore import load_masters
from plast_train.checkpoint.resume import judge
from plast_train.context import Context
from plast_train.lvlm.attention import implementation_for, set_attention
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.lora import MergedWeights
from plast_train.lvlm.weights import load_layers, load_weights, put_weights
from plast_train.run_folder import read_json
from plast_train.runtime.late_files import FileWait
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
    """The step of each kept checkpoint, ascending; the model has its weights then. One that is broken or of
    another base or other layers is skipped with a warning. Called by every rank."""
    parameters = context.changed_parameters()
    selection, train = read_json(context.run.selection), context.config.train
    wanted = {
        "base": context.base["fingerprint"],
        "layers": selection["selected_layers"],
        "modules": selection["modules"],
    }
    file_wait = FileWait(context.ranks.say)
    found = context.ranks.on_first(lambda: checkpoints(context.run.checkpoints)[::-1])
    for path in found:
        step: int | None = None
        masters: Mapping[str, torch.Tensor] = {}
        if context.ranks.is_first:
            verdict = judge(path, wanted, file_wait)
            if verdict.fits:
                step, masters = int(verdict.manifest["step"]), load_masters(path, verdict.manifest)
                if train.method == "lora":
                    masters = MergedWeights(context.lvlm.path, masters, train.lora_scale)
            else:
                context.ranks.say(f"WARNING: {verdict.problem}; it is left out of the analysis")
        step = context.ranks.broadcast(step)
        if step is not None:
            put_weights(parameters, masters, context.ranks)
            yield step
