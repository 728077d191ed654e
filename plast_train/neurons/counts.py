"""Which FFN neurons fire (arXiv 2508.18381): integer tables, filled by hooks on every decoder layer's gate.

Integers reduce exactly, so the tables do not depend on how rows were sharded over ranks or when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn

from plast_train.data.packing import PackedRow
from plast_train.errors import UserError


@dataclass
class ActivationCounts:
    """The tables for S records, L layers, G languages, N neurons.

    active `[S, L, G]` int32, shared_with_english `[S, L, G]` int32, neuron_counts `[G, L, N]` int64,
    token_counts `[G, L, N]` int64, tokens `[G]` int64.
    """

    active: torch.Tensor
    shared_with_english: torch.Tensor
    neuron_counts: torch.Tensor
    token_counts: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    def zeros(
        cls, num_records: int, num_layers: int, num_languages: int, num_neurons: int, device: torch.device
    ) -> ActivationCounts:
        per_record = (num_records, num_layers, num_languages)
        per_neuron = (num_languages, num_layers, num_neurons)
        return cls(
            active=torch.zeros(per_record, dtype=torch.int32, device=device),
            shared_with_english=torch.zeros(per_record, dtype=torch.int32, device=device),
            neuron_counts=torch.zeros(per_neuron, dtype=torch.int64, device=device),
            token_counts=torch.zeros(per_neuron, dtype=torch.int64, device=device),
            tokens=torch.zeros(num_languages, dtype=torch.int64, device=device),
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def add(self, other: dict[str, torch.Tensor]) -> None:
        """Adds tables of the same shapes, counted over other rows."""
        for name, table in self.state_dict().items():
            table += other[name].to(table.device)


@dataclass(frozen=True)
class RowIndex:
    """Where a row is read. For its P sequences: `last` row position, `slot` in the tables, `language`, and
    `english`, the sequence among the P that asks the same in English; for its T question-text positions:
    `text` row position and `text_language`. All int64."""

    last: torch.Tensor
    slot: torch.Tensor
    language: torch.Tensor
    english: torch.Tensor
    text: torch.Tensor
    text_language: torch.Tensor


def index_row(row: PackedRow, slots: dict[int, int], english: int, device: torch.device) -> RowIndex:
    """`slots` maps a record's number to its place in the tables; `english` is English's language number."""
    keys = [p.sequence.key for p in row.placed]
    english_at = {key.record: i for i, key in enumerate(keys) if key.language == english}
    text = [(at, p.sequence.key.language) for p in row.placed for at in p.span(*p.sequence.question)]

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return RowIndex(
        last=tensor([p.at(p.sequence.last_prompt_position) for p in row.placed]),
        slot=tensor([slots[key.record] for key in keys]),
        language=tensor([key.language for key in keys]),
        english=tensor([english_at[key.record] for key in keys]),
        text=tensor([at for at, _ in text]),
        text_language=tensor([language for _, language in text]),
    )


class GateCounter:
    """Counts, at each forward pass, the neurons whose gate is open (`act(W_gate x) > 0`) at the positions
    of the row given to `watch`."""

    def __init__(self, counts: ActivationCounts) -> None:
        self.counts = counts
        self._row: RowIndex | None = None

    @contextmanager
    def attached(self, gates: Sequence[nn.Module]) -> Iterator[None]:
        """Hooks on the gates, one a decoder layer, for the duration of the block.

        Raises:
            UserError: layers share a gate module, so that a hook cannot tell them apart.
        """
        if len({id(gate) for gate in gates}) != len(gates):
            raise UserError("The decoder's layers share one activation module; this model cannot be probed.")
        handles = [
            gate.register_forward_hook(partial(self._count, number)) for number, gate in enumerate(gates)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def watch(self, row: RowIndex | None) -> Iterator[None]:
        """Counts this row during the block; with None the forward pass is not counted."""
        self._row = row
        if row is not None:
            self.counts.tokens.index_add_(0, row.text_language, torch.ones_like(row.text_language))
        try:
            yield
        finally:
            self._row = None

    def _count(self, number: int, _module: nn.Module, _inputs: Any, gate: torch.Tensor) -> None:
        """The forward hook of layer `number`; `gate` is `[1, row length, N]`."""
        row, counts = self._row, self.counts
        if row is None:
            return
        fires = gate[0][row.last] > 0
        both = fires & fires[row.english]
        # Each record has one sequence per language: set. A neuron fires in many sequences: added.
        counts.active[row.slot, number, row.language] = fires.sum(-1, dtype=torch.int32)
        counts.shared_with_english[row.slot, number, row.language] = both.sum(-1, dtype=torch.int32)
        counts.neuron_counts[:, number].index_add_(0, row.language, fires.long())
        counts.token_counts[:, number].index_add_(0, row.text_language, (gate[0][row.text] > 0).long())
