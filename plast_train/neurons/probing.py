"""Running parallel questions through the model while hooks count which neurons fire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from plast_train.data.images import load_image
from plast_train.data.packing import PackedRow, RankRow, fill_rows, pack_row
from plast_train.data.questions import Record
from plast_train.data.token_tree import TokenTree, build_tree
from plast_train.lvlm.forward import forward_ready, row_inputs
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.prompts import Prompter
from plast_train.neurons.counts import ActivationCounts, GateCounter, index_row


def probe_rows(
    prompter: Prompter, records: Sequence[Record], numbers: Sequence[int], tokens_per_row: int
) -> list[list[TokenTree]]:
    """Rows of one tree a record, its question in every language in the prompter's order."""
    return fill_rows([build_tree(group) for group in prompter.probes(records, numbers)], tokens_per_row)


def empty_counts(lvlm: Lvlm, num_records: int, num_languages: int, device: torch.device) -> ActivationCounts:
    text = lvlm.config["text_config"]
    num_layers, num_neurons = text["num_hidden_layers"], text["intermediate_size"]
    return ActivationCounts.zeros(num_records, num_layers, num_languages, num_neurons, device)


def probe_inputs(lvlm: Lvlm, model: torch.nn.Module, row: PackedRow) -> dict[str, Any]:
    """The arguments with which `model` (the LVLM with or without its head) takes the row and its images."""
    pixels = lvlm.pixel_values([load_image(path) for path in row.images]) if row.images else None
    return row_inputs(model, row, pixels)


@contextmanager
def counting(
    lvlm: Lvlm,
    counts: ActivationCounts,
    numbers: Sequence[int],
    english: int,
    deepspeed_config: dict[str, Any],
) -> Iterator[Callable[[RankRow], None]]:
    """Yields a function that runs a rank's row through the model and adds to `counts` if the row counts.

    `numbers` are the records of the tables, in their order; `english` is English's language number. Every
    rank calls the function equally often: under ZeRO-3 each forward pass gathers weights from all ranks.
    """
    slots = {number: slot for slot, number in enumerate(numbers)}
    counter = GateCounter(counts)
    gates = [lvlm.family.gate(layer) for layer in lvlm.family.layers(lvlm.model)]
    # Without the head: nothing is predicted here, and logits would take most of the memory.
    body = lvlm.model.get_submodule("model")
    with torch.no_grad(), forward_ready(body, deepspeed_config) as model, counter.attached(gates):

        def count(rank_row: RankRow) -> None:
            row = pack_row(rank_row.trees)
            where = index_row(row, slots, english, counts.tokens.device) if rank_row.counts else None
            with counter.watch(where):
                model(**probe_inputs(lvlm, model, row), use_cache=False)

        yield count
