"""Bytes that each rank sends to others in one optimizer step, by what DeepSpeed's ZeRO stages exchange.

Ring algorithms over N ranks send (N−1)/N of a tensor per rank for a reduce-scatter or an all-gather and
twice that for an all-reduce (Patarasuk & Yuan 2009).
"""

from __future__ import annotations

from typing import Any

from plast_train.training.memory import TrainedModel


def step_traffic(model: TrainedModel, zero: dict[str, Any], ranks: int, micro_steps: int) -> dict[str, int]:
    """`gradients` and `weights`: bytes one rank sends in a step of `micro_steps` packed rows.

    Stage 1 reduces gradients once a step, stages 2 and 3 after every micro-step. Stages 1 and 2 reduce a
    bucket for all ranks together, which is an all-reduce, unless `use_multi_rank_bucket_allreduce` is off.
    Stage 3 gathers every weight for the forward pass, and those through which a gradient passes again for the
    backward pass, every micro-step; an upper bound, since it keeps small weights and those used again soon.
    """
    ring = (ranks - 1) / ranks
    trained = model.trained_parameters * model.bytes_per_weight
    if zero["stage"] < 3:
        reductions = 1 if zero["stage"] == 1 else micro_steps
        whole = zero.get("use_multi_rank_bucket_allreduce", True) or not zero.get("reduce_scatter", True)
        return {
            "gradients": round(ring * trained * reductions * (2 if whole else 1)),
            "weights": round(ring * trained),
        }
    decoder = model.decoder
    layer = decoder.attention_weights + decoder.ffn_weights + 2 * decoder.hidden
    again = model.carrying_layers * layer + decoder.hidden + decoder.vocab * decoder.hidden
    gathered = (model.total_parameters + again) * model.bytes_per_weight
    return {
        "gradients": round(ring * trained * micro_steps),
        "weights": round(ring * gathered * micro_steps),
    }
