"""The loss on held-back records, language by language."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plast_train.data.packing import fill_rows, shard_rows
from plast_train.data.token_tree import TokenSequence, TokenTree, build_tree, split_tree
from plast_train.lvlm.forward import load_row
from plast_train.lvlm.loading import Lvlm
from plast_train.runtime.distributed import Ranks
from plast_train.training.batches import token_losses


class Validation:
    """Rows of held-back records; planned once, without regard to the number of ranks."""

    def __init__(
        self,
        records: Sequence[Sequence[TokenSequence]],
        languages: Sequence[str],
        tokens_per_row: int,
        lvlm: Lvlm,
        ranks: Ranks,
    ) -> None:
        self.languages, self.lvlm, self.ranks = languages, lvlm, ranks
        trees: list[TokenTree] = [
            part for record in records if record for part in split_tree(build_tree(record), tokens_per_row)
        ]
        self.rows = fill_rows(trees, tokens_per_row)

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """Mean cross-entropy over the label tokens of each language that has any, in nats."""
        sums = torch.zeros(len(self.languages), 2, dtype=torch.float64)
        for rank_row in shard_rows(self.rows, self.ranks.rank, self.ranks.world):
            row = load_row(rank_row.trees, self.lvlm)
            losses = token_losses(self.lvlm.model, self.lvlm, row).cpu()
            self.ranks.alive()
            if not rank_row.counts:
                continue
            start = 0
            for placed in row.placed:
                part = losses[start : start + placed.sequence.labels]
                start += placed.sequence.labels
                sums[placed.sequence.key.language] += torch.tensor([float(part.sum()), len(part)])
        sums = self.ranks.sum(sums)
        return {
            language: float(total / count)
            for language, (total, count) in zip(self.languages, sums, strict=True)
            if count > 0
        }
