"""Running parallel questions through the model while hooks count which neurons fire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from plast_train.data.packing import RankRow, fill_rows
from plast_train.data.questions import Record
from plast_train.data.token_tree import TokenTree, build_tree
from plast_train.lvlm.forward import forward_ready, load_row, row_inputs
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
            row = load_row(rank_row.trees, lvlm)
            where = index_row(row, slots, english, counts.tokens.device) if rank_row.counts else None
            with counter.watch(where):
                model(**row_inputs(model, row), use_cache=False)

        yield count
