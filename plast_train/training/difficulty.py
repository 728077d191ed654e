"""How hard each training pair is for the base model: its mean loss over the reply's tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from plast_train.context import Context
from plast_train.data.packing import fill_rows, shard_rows
from plast_train.data.token_tree import Key, TokenSequence, build_tree, split_tree
from plast_train.errors import Interrupted
from plast_train.lvlm.forward import forward_ready, load_row
from plast_train.run_folder import publish_text, read_json, sha256_of, to_json
from plast_train.stages import settings_of
from plast_train.training.batches import token_losses


def pair_losses(context: Context, records: Sequence[Sequence[TokenSequence]]) -> dict[Key, float]:
    """Cross-entropy in nats a label token of every pair, with the base model as loaded. Rows are planned
    without regard to the number of ranks. Kept in `RUN/difficulty.json`, for a run that goes on.

    Raises:
        Interrupted: a stop signal came; it is begun anew.
    """
    ranks, path = context.ranks, context.run.path / "difficulty.json"
    identity = _identity(context)
    known = ranks.on_first(lambda: read_json(path) if path.is_file() else {})
    if known.get("identity") != identity:
        losses = _measure(context, records)
        known = {"identity": identity, "losses": [[*key, loss] for key, loss in sorted(losses.items())]}
        ranks.on_first(lambda: publish_text(path, to_json(known)))
    return {Key(record, language): loss for record, language, loss in known["losses"]}


@torch.no_grad()
def _measure(context: Context, records: Sequence[Sequence[TokenSequence]]) -> dict[Key, float]:
    ranks, lvlm, budget = context.ranks, context.lvlm, context.config.train.tokens_per_row
    trees = [part for record in records if record for part in split_tree(build_tree(record), budget)]
    rows = fill_rows(trees, budget)
    found: dict[Key, float] = {}
    with (
        forward_ready(lvlm.model, context.deepspeed) as model,
        ranks.progress("train: difficulty", len(trees), "records") as progress,
    ):
        for rank_row in shard_rows(rows, ranks.rank, ranks.world):
            row = load_row(rank_row.trees, lvlm)
            losses, start = token_losses(model, lvlm, row).cpu(), 0
            for placed in row.placed:
                part = losses[start : start + placed.sequence.labels]
                start += placed.sequence.labels
                if rank_row.counts:
                    found[placed.sequence.key] = float(part.double().mean())
            progress.add(min(ranks.world * len(rank_row.trees), len(trees) - progress.done))
            if ranks.should_stop():
                raise Interrupted("train: stopped by a signal while measuring difficulty; it is begun anew")
    return {key: loss for part in ranks.gather(found) for key, loss in part.items()}


def _identity(context: Context) -> str:
    content: list[Any] = [context.base["fingerprint"], sha256_of(context.run.records)]
    content.append(settings_of("train", context.config))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
