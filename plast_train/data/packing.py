"""Packed rows: trees laid end to end up to a token budget.

Rows are planned from data and settings alone and then shared out among ranks, so what a row holds never
depends on how many ranks there are, and neither does any number computed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from plast_train.data.token_tree import TokenSequence, TokenTree


@dataclass(frozen=True)
class PlacedSequence:
    """Where one sequence of a row lies: its prefix at `prefix_at`, the rest at `branch_at`."""

    sequence: TokenSequence
    prefix: int
    prefix_at: int
    branch_at: int

    def at(self, position: int) -> int:
        """Row index of a position of the sequence."""
        return (
            self.prefix_at + position if position < self.prefix else self.branch_at + position - self.prefix
        )

    def span(self, start: int, stop: int) -> list[int]:
        return [self.at(p) for p in range(start, stop)]


@dataclass(frozen=True)
class PackedRow:
    """One row of several trees; tensors are `[tokens]` int64.

    `pixel_values` `[images, 3, height, width]` are those of `images` in their order, on the CPU, once loaded
    (`lvlm.forward.load_row`); None before, and in a row without images.
    `position_ids` restart at the prefix's end in each branch. `tree` numbers the trees, `branch` is 0 in a
    prefix and 1, 2, … in its branches: together they say what a token may see (`lvlm.attention`).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    tree: torch.Tensor
    branch: torch.Tensor
    images: tuple[str, ...]
    placed: tuple[PlacedSequence, ...]
    pixel_values: torch.Tensor | None = None

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row indices that predict a label, and the labels: two int64 tensors `[labels]`."""
        indices: list[int] = []
        labels: list[int] = []
        for placed in self.placed:
            sequence = placed.sequence
            indices += placed.span(sequence.last_prompt_position, sequence.length - 1)
            labels += sequence.tokens[sequence.last_prompt_position + 1 :]
        return torch.tensor(indices, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)


def pack_row(trees: Sequence[TokenTree]) -> PackedRow:
    """The tensors of one row."""
    ids: list[int] = []
    positions: list[int] = []
    tree_of: list[int] = []
    branch_of: list[int] = []
    placed: list[PlacedSequence] = []
    for number, tree in enumerate(trees):
        prefix_at = len(ids)
        ids += tree.sequences[0].tokens[: tree.prefix]
        positions += range(tree.prefix)
        branch_of += [0] * tree.prefix
        for branch, sequence in enumerate(tree.sequences, start=1):
            placed.append(PlacedSequence(sequence, tree.prefix, prefix_at, len(ids)))
            rest = sequence.tokens[tree.prefix :]
            ids += rest
            positions += range(tree.prefix, sequence.length)
            branch_of += [branch] * len(rest)
        tree_of += [number] * (len(ids) - prefix_at)
    images = tuple(tree.image for tree in trees if tree.image is not None)
    input_ids, position_ids, tree_ids, branch_ids = (
        torch.tensor(column, dtype=torch.int64) for column in (ids, positions, tree_of, branch_of)
    )
    return PackedRow(input_ids, position_ids, tree_ids, branch_ids, images, tuple(placed))


def fill_rows(trees: Sequence[TokenTree], budget: int) -> list[list[TokenTree]]:
    """Trees in their order, a new row whenever the budget is full; rows hold trees of one kind (with an
    image or without), so that every round of ranks is of one kind."""
    rows: list[list[TokenTree]] = []
    used: dict[bool, int] = {}
    open_row: dict[bool, list[TokenTree]] = {}
    for tree in trees:
        kind = tree.image is not None
        if kind not in open_row or used[kind] + tree.tokens > budget:
            open_row[kind], used[kind] = [], 0
            rows.append(open_row[kind])
        open_row[kind].append(tree)
        used[kind] += tree.tokens
    return rows


def balance_rows(trees: Sequence[TokenTree], rows: int) -> list[list[TokenTree]]:
    """Trees spread over a fixed number of rows, longest first to the emptiest row (Graham's LPT rule)."""
    filled: list[list[TokenTree]] = [[] for _ in range(rows)]
    used = [0] * rows
    for tree in sorted(trees, key=lambda t: -t.tokens):
        target = used.index(min(used))
        filled[target].append(tree)
        used[target] += tree.tokens
    return filled


@dataclass(frozen=True)
class RankRow:
    """A rank's share of one round. A rank with nothing left repeats a row that does not count, because all
    ranks must run the same number of forward passes (ZeRO-3 gathers weights in each)."""

    number: int
    trees: tuple[TokenTree, ...]
    counts: bool


def shard_rows(rows: Sequence[Sequence[TokenTree]], rank: int, world: int) -> list[RankRow]:
    """Rank `rank`'s rows, round by round, all with images or all without in each round."""
    rank_rows: list[RankRow] = []
    for with_image in (True, False):
        numbers = [i for i, row in enumerate(rows) if (row[0].image is not None) == with_image]
        for start in range(0, len(numbers), world):
            counts = start + rank < len(numbers)
            number = numbers[start + rank] if counts else numbers[start]
            rank_rows.append(RankRow(number, tuple(rows[number]), counts))
    return rank_rows


def shard_step(rows: Sequence[Sequence[TokenTree]], rank: int, world: int) -> list[RankRow]:
    """Rank `rank`'s micro-steps of one training step: ⌈rows / world⌉ for every rank, where rows beyond the
    last or empty ones are replaced by the step's fullest row, which then does not count."""
    fullest = max(range(len(rows)), key=lambda i: sum(t.tokens for t in rows[i]))
    rank_rows: list[RankRow] = []
    for number in range(rank, -(-len(rows) // world) * world, world):
        counts = number < len(rows) and bool(rows[number])
        chosen = number if counts else fullest
        rank_rows.append(RankRow(chosen, tuple(rows[chosen]), counts))
    return rank_rows
