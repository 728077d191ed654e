"""What each training step trains on, planned for the whole run from data and seed alone."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from plast_train.data.mixing import draw_epoch
from plast_train.data.packing import balance_rows
from plast_train.data.questions import Record, complete
from plast_train.data.token_tree import TokenSequence, TokenTree, build_tree, split_tree


@dataclass(frozen=True)
class Step:
    """One optimizer step: `rows` of trees (an empty row is possible in a short step), all with images or all
    without; `labels` is the number of tokens that carry a loss."""

    rows: tuple[tuple[TokenTree, ...], ...]
    samples: int
    labels: int
    tokens: int


@dataclass(frozen=True)
class TrainingPlan:
    """All steps; each has the same number of rows, whatever the number of ranks."""

    steps: tuple[Step, ...]
    rows_per_step: int


def split_records(total: int, held_back: int, seed: int) -> tuple[list[int], list[int]]:
    """Record numbers for training and, disjoint from them, `held_back` for the validation loss."""
    held = set(random.Random(f"validation {seed}").sample(range(total), min(held_back, total - 1)))
    return [i for i in range(total) if i not in held], sorted(held)


def probe_records(records: Sequence[Record], languages: Sequence[str], wanted: int, seed: int) -> list[int]:
    """The numbers of the records that are probed, ascending; only complete ones are."""
    numbers = complete(records, languages)
    return sorted(random.Random(f"probe {seed}").sample(numbers, min(wanted, len(numbers))))


def plan_training(
    records: Sequence[Sequence[TokenSequence]],
    global_batch: int,
    tokens_per_row: int,
    seed: int,
    epochs: float,
    max_steps: int | None,
    shares: Mapping[int, float] | None = None,
) -> TrainingPlan:
    """Plans the steps: `max_steps` of them over as many epochs as that takes, or else `epochs`.

    `records` holds the translation sequences of each training record. An epoch visits the records in a
    new order; a record's languages stay together, so that they share its image. With `shares` of the
    languages each epoch is drawn again (`mixing.draw_epoch`).
    """
    batches = list(
        itertools.islice(
            _batches(records, global_batch, seed, shares), 0, _steps(records, global_batch, epochs, max_steps)
        )
    )
    trees = [[part for tree in batch for part in split_tree(tree, tokens_per_row)] for batch in batches]
    rows = max(_rows_needed(batch, tokens_per_row) for batch in trees)
    return TrainingPlan(tuple(_step(batch, rows) for batch in trees), rows)


def _steps(
    records: Sequence[Sequence[TokenSequence]], global_batch: int, epochs: float, max_steps: int | None
) -> int:
    if max_steps is not None:
        return max_steps
    by_kind = [sum(len(r) for r in records if r and (r[0].image is None) == kind) for kind in (True, False)]
    return max(1, math.ceil(epochs * sum(math.ceil(n / global_batch) for n in by_kind)))


def _batches(
    records: Sequence[Sequence[TokenSequence]], size: int, seed: int, shares: Mapping[int, float] | None
) -> Iterator[list[TokenTree]]:
    """Endless batches of trees, epoch after epoch; a batch is all with images or all without."""
    for epoch in itertools.count():
        rng = random.Random(f"order {seed} {epoch}")
        drawn = records if shares is None else draw_epoch(records, shares, seed, epoch)
        order = rng.sample(range(len(drawn)), len(drawn))
        batches = []
        for with_image in (True, False):
            sequences = [s for i in order for s in drawn[i] if (s.image is not None) == with_image]
            batches += [sequences[i : i + size] for i in range(0, len(sequences), size)]
        rng.shuffle(batches)
        for batch in batches:
            yield [build_tree(list(group)) for _, group in itertools.groupby(batch, lambda s: s.key.record)]


def _rows_needed(trees: Sequence[TokenTree], budget: int) -> int:
    """The fewest rows over which the trees balance within the budget."""
    rows = math.ceil(sum(t.tokens for t in trees) / budget)
    while max(sum(t.tokens for t in row) for row in balance_rows(trees, rows)) > budget:
        rows += 1
    return rows


def _step(trees: Sequence[TokenTree], rows: int) -> Step:
    sequences = [s for tree in trees for s in tree.sequences]
    return Step(
        rows=tuple(tuple(row) for row in balance_rows(trees, rows)),
        samples=len(sequences),
        labels=sum(s.labels for s in sequences),
        tokens=sum(t.tokens for t in trees),
    )
