"""Losses of packed rows: of a training step, of held-back records, and of each pair before training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from plast_train.context import Context
from plast_train.data.packing import PackedRow, fill_rows, shard_rows
from plast_train.data.token_tree import Key, TokenSequence, TokenTree, build_tree, split_tree
from plast_train.errors import Interrupted
from plast_train.lvlm.forward import forward_ready, load_row, row_inputs
from plast_train.lvlm.loading import Lvlm
from plast_train.run_folder import publish_text, read_json, sha256_of, to_json
from plast_train.runtime.distributed import Ranks
from plast_train.stages import settings_of


def token_losses(forward: Callable[..., Any], lvlm: Lvlm, row: PackedRow) -> torch.Tensor:
    """Cross-entropy of each label token, float32 `[labels]` in the order of `PackedRow.targets`, in nats.

    `forward` is the model or the engine around it. Logits are computed only where there is a label.
    """
    indices, labels = row.targets()
    inputs = row_inputs(lvlm.model, row)
    device = inputs["input_ids"].device
    logits = forward(**inputs, logits_to_keep=indices.to(device), use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0].float(), labels.to(device), reduction="none")


class Validation:
    """The loss on held-back records, language by language."""

    def __init__(
        self,
        records: Sequence[Sequence[TokenSequence]],
        languages: Sequence[str],
        tokens_per_row: int,
        lvlm: Lvlm,
        ranks: Ranks,
    ) -> None:
        self.languages, self.lvlm, self.ranks = languages, lvlm, ranks
        self.rows = fill_rows(_trees(records, tokens_per_row), tokens_per_row)

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """Mean cross-entropy over the label tokens of each language that has any, in nats."""
        sums = torch.zeros(len(self.languages), 2, dtype=torch.float64)
        for rank_row in shard_rows(self.rows, self.ranks.rank, self.ranks.world):
            row = load_row(rank_row.trees, self.lvlm)
            losses = token_losses(self.lvlm.model, self.lvlm, row).cpu()
            self.ranks.alive()
            if rank_row.counts:
                for key, part in _by_sequence(row, losses):
                    sums[key.language] += torch.tensor([float(part.sum()), len(part)])
        sums = self.ranks.sum(sums)
        return {
            language: float(total / count)
            for language, (total, count) in zip(self.languages, sums, strict=True)
            if count > 0
        }


def pair_losses(context: Context, records: Sequence[Sequence[TokenSequence]]) -> dict[Key, float]:
    """How hard each training pair is for the base model as loaded: its mean loss over the reply's tokens, in
    nats. Kept in `RUN/difficulty.json`, for a run that resumes.

    Raises:
        Interrupted: a stop signal came; measuring starts over the next time.
    """
    ranks, path = context.ranks, context.run.path / "difficulty.json"
    content: list[Any] = [context.base["fingerprint"], sha256_of(context.run.records)]
    content.append(settings_of("train", context.config))
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    known = ranks.on_first(lambda: read_json(path) if path.is_file() else {})
    if known.get("identity") != identity:
        losses = _measure(context, records)
        known = {"identity": identity, "losses": [[*key, loss] for key, loss in sorted(losses.items())]}
        ranks.on_first(lambda: publish_text(path, to_json(known)))
    return {Key(record, language): loss for record, language, loss in known["losses"]}


@torch.no_grad()
def _measure(context: Context, records: Sequence[Sequence[TokenSequence]]) -> dict[Key, float]:
    ranks, lvlm, budget = context.ranks, context.lvlm, context.config.train.tokens_per_row
    trees = _trees(records, budget)
    found: dict[Key, float] = {}
    with (
        forward_ready(lvlm.model, context.deepspeed) as model,
        ranks.progress("train: difficulty", len(trees), "records") as progress,
    ):
        for rank_row in shard_rows(fill_rows(trees, budget), ranks.rank, ranks.world):
            row = load_row(rank_row.trees, lvlm)
            losses = token_losses(model, lvlm, row).cpu()
            if rank_row.counts:
                found |= {key: float(part.double().mean()) for key, part in _by_sequence(row, losses)}
            progress.add(min(ranks.world * len(rank_row.trees), len(trees) - progress.done))
            if ranks.should_stop():
                raise Interrupted("train: stopped by a signal while measuring difficulty, which starts over")
    return {key: loss for part in ranks.gather(found) for key, loss in part.items()}


def _trees(records: Sequence[Sequence[TokenSequence]], tokens_per_row: int) -> list[TokenTree]:
    """Planned regardless of the number of ranks, so that no number depends on it."""
    return [part for record in records if record for part in split_tree(build_tree(record), tokens_per_row)]


def _by_sequence(row: PackedRow, losses: torch.Tensor) -> Iterator[tuple[Key, torch.Tensor]]:
    """Each sequence's part of the row's `token_losses`."""
    start = 0
    for placed in row.placed:
        yield placed.sequence.key, losses[start : start + placed.sequence.labels]
        start += placed.sequence.labels
