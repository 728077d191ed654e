"""Layer knock-out: what accuracy each language loses when a decoder layer is skipped at inference (its input
is handed on as it is), or when a trained layer gets the base's weights back.

Items are a stated subset of the benchmarks, scored by option logits. Accuracies are compared on the same
items, so each carries how many items went from right to wrong and back, and McNemar's exact two-sided p
(McNemar 1947), not corrected for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from plast_train.analysis.models import MODELS, for_rows, load_weights_of, selected_layers
from plast_train.analysis.option_items import OptionItems, same_items
from plast_train.context import Context
from plast_train.data.packing import shard_rows
from plast_train.errors import Interrupted
from plast_train.lvlm.forward import forward_ready
from plast_train.scoring.accuracies import BASE, TRAINED
from plast_train.scoring.significance import mcnemar
from plast_train.tasks.registry import benchmarks_of

INTACT = "intact"


# Questions a variant has right: variant → `[questions]` int64. A variant is INTACT or a layer's number.
Right = dict[str | int, torch.Tensor]


def knockout(context: Context) -> dict[str, Any]:
    """Counts of right answers per benchmark, language, model and knocked-out layer.

    Raises:
        Interrupted: a stop signal came.
        UserError: the tokenizer has no token of its own for an option letter.
    """
    config = context.config
    benchmarks = same_items(benchmarks_of(config.evaluate), config.analyse.items, config.seed)
    lvlm, selected = for_rows(context), selected_layers(context)
    items = OptionItems.of(
        lvlm, benchmarks, config.evaluate.localised_instruction, config.analyse.tokens_per_row
    )
    layers = range(len(lvlm.family.layers(lvlm.model)))
    tree = {"score": "option_logits", "layers": len(layers), "selected_layers": selected}
    if not items.questions:
        return tree | {"benchmarks": {}}
    skipped: dict[str, Right] = {}
    for name in MODELS:
        load_weights_of(context, name)
        skipped[name] = _right(context, items, layers, f"{name}, skipped")
    reset: Right = {INTACT: skipped[TRAINED][INTACT]}
    for layer in selected:
        load_weights_of(context, TRAINED)
        load_weights_of(context, BASE, [layer])
        reset[layer] = _right(context, items, (), f"{TRAINED}, layer {layer} reset")[INTACT]
    found = {}
    for name in dict.fromkeys(benchmark.name for benchmark in benchmarks):
        numbers = _numbers(items, name)
        found[name] = {
            "figure": plain_name(name),
            "items": [items.questions[n].item.index for n in next(iter(numbers.values()))],
            "languages": list(numbers),
            "intact": {model: _sums(skipped[model][INTACT], numbers) for model in MODELS},
            "skipped": {model: _by_layer(skipped[model], layers, numbers) for model in MODELS},
            "reset": _by_layer(reset, selected, numbers),
        }
    return tree | {"benchmarks": found}


def _right(context: Context, items: OptionItems, layers: Sequence[int], label: str) -> Right:
    """Of the model as it is, intact and with each of the layers skipped; on every rank."""
    ranks, lvlm = context.ranks, context.lvlm
    variants: list[str | int] = [INTACT, *layers]
    right = {variant: torch.zeros(len(items.questions), dtype=torch.int64) for variant in variants}
    progress = ranks.progress(f"analyse: knockout, {label}", len(items.questions), "questions")
    decoder = lvlm.family.layers(lvlm.model)
    with forward_ready(lvlm.model, context.deepspeed) as model, progress:
        for rank_row in shard_rows(items.rows, ranks.rank, ranks.world):
            if ranks.should_stop():
                raise Interrupted(f"analyse: stopped by a signal in knockout, {label}")
            row = items.row(lvlm, model, rank_row.trees)
            with recorded_inputs(decoder) as inputs:
                found: dict[str | int, dict[int, int]] = {INTACT: items.right(model, row)}
            for layer in layers:
                with skipped_layer(decoder, layer, inputs[layer]):
                    found[layer] = items.right(model, row)
            for variant, of_row in found.items() if rank_row.counts else ():
                for number, is_right in of_row.items():
                    right[variant][number] = is_right
            progress.add(min(ranks.world * len(row.questions), len(items.questions) - progress.done))
    return {variant: ranks.sum(right[variant]) for variant in right}


@contextmanager
def recorded_inputs(decoder: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """After a forward pass within it, what each layer was given: L tensors `[rows, tokens, width]`."""
    inputs: list[torch.Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _layer, given: inputs.append(given[0])) for layer in decoder
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipped_layer(decoder: Sequence[nn.Module], number: int, given: torch.Tensor) -> Iterator[None]:
    """Within it layer `number` hands its input on. That input, `given`, is known from the intact pass over
    the same row, so the layers below do not compute it again."""

    def hand_on(_hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return given

    replaced: Sequence[Any] = decoder[: number + 1]
    for layer in replaced:
        layer.forward = hand_on
    try:
        yield
    finally:
        for layer in replaced:
            del layer.forward  # the class's own again


def plain_name(name: str) -> str:
    """A benchmark's name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _numbers(items: OptionItems, benchmark: str) -> dict[str, list[int]]:
    """Language → the numbers of the benchmark's questions."""
    numbers: dict[str, list[int]] = {}
    for number, question in enumerate(items.questions):
        if question.benchmark.name == benchmark:
            numbers.setdefault(question.benchmark.language, []).append(number)
    return numbers


def _sums(right: torch.Tensor, numbers: dict[str, list[int]]) -> dict[str, int]:
    return {language: int(right[own].sum()) for language, own in numbers.items()}


def _by_layer(right: Right, layers: Sequence[int], numbers: dict[str, list[int]]) -> dict[str, Any]:
    return {
        str(layer): {
            language: compare(right[INTACT][own].bool(), right[layer][own].bool())
            for language, own in numbers.items()
        }
        for layer in layers
    }


def compare(intact: torch.Tensor, knocked_out: torch.Tensor) -> dict[str, Any]:
    """Of bool `[items]`: how many the knocked-out model has `right`, `lost` (right only when intact) and
    `gained` (right only when knocked out), and McNemar's exact `p` for losing and gaining alike."""
    lost = int((intact & ~knocked_out).sum())
    gained = int((knocked_out & ~intact).sum())
    return {"right": int(knocked_out.sum()), "lost": lost, "gained": gained, "p": mcnemar(lost, gained)}
