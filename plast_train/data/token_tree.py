"""Token trees: a shared prefix and its branches.

Sequences that begin alike (system text, image) are computed once: the tree's prefix is the longest run of
tokens they share, cut so that every branch keeps the positions that are read from it.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Key(NamedTuple):
    """Whose sequence it is: the record's number in the data and the language's number in the config."""

    record: int
    language: int


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sequence as the model's processor makes it, image placeholders expanded.

    `last_prompt_position` is the first position whose hidden state is used: from it the reply is
    predicted. `labels` counts the tokens at the end that carry a loss (0 when probing);
    `question` is the half-open range of the question's own text.

    Each rank holds the sequences of the whole data set, so the `length` tokens are kept compressed: an image
    is one token repeated.
    """

    key: Key
    compressed: bytes
    length: int
    question: tuple[int, int]
    labels: int
    image: str | None

    @classmethod
    def of(
        cls,
        key: Key,
        tokens: Sequence[int],
        question: tuple[int, int],
        labels: int = 0,
        image: str | None = None,
    ) -> TokenSequence:
        compressed = zlib.compress(array("i", tokens).tobytes(), level=1)
        return cls(key, compressed, len(tokens), question, labels, image)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(array("i", zlib.decompress(self.compressed)))

    @property
    def last_prompt_position(self) -> int:
        return self.length - 1 - self.labels


@dataclass(frozen=True)
class TokenTree:
    """Sequences of one record: `prefix` tokens are shared by all of them, the rest are branches."""

    prefix: int
    sequences: tuple[TokenSequence, ...]

    @property
    def tokens(self) -> int:
        return self.prefix + sum(s.length - self.prefix for s in self.sequences)

    @property
    def image(self) -> str | None:
        return self.sequences[0].image


def build_tree(sequences: Sequence[TokenSequence]) -> TokenTree:
    """The tree of sequences about one image. Their order is kept.

    Raises:
        ValueError: no sequence, or different images.
    """
    if not sequences or len({s.image for s in sequences}) != 1:
        raise ValueError("a token tree needs at least one sequence, all of one image")
    tokens = [s.tokens for s in sequences]
    first, last = min(tokens), max(tokens)  # what these two share, all share
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return TokenTree(min(shared, *(s.last_prompt_position for s in sequences)), tuple(sequences))


def split_tree(tree: TokenTree, budget: int) -> list[TokenTree]:
    """Trees of at most `budget` tokens with the same sequences in the same order.

    Raises:
        ValueError: a single sequence is longer than the budget.
    """
    if tree.tokens <= budget:
        return [tree]
    if len(tree.sequences) == 1:
        raise ValueError(f"a sequence of {tree.tokens} tokens does not fit a row of {budget}")
    half = len(tree.sequences) // 2
    halves = (build_tree(tree.sequences[:half]), build_tree(tree.sequences[half:]))
    return [part for part_tree in halves for part in split_tree(part_tree, budget)]
