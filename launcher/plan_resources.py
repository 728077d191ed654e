"""What a run asks of its GPUs, memory, traffic and time, and which DeepSpeed configuration to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plast_train.config import Config

if TYPE_CHECKING:
    from launcher.plan_work import CollectingWork, TrainingWork
    from plast_train.training.memory import TrainedModel

GIB = 2**30
CARDS = (24, 40, 80, 141)  # GB of common GPUs, by which their makers mean GiB
# Of a card's memory; the rest is the driver's, and room for what an estimate misses.
USABLE = 0.95


def compare_settings(
    config: Config, model: TrainedModel, training: TrainingWork, ranks: Sequence[int]
) -> list[dict[str, Any]]:
    """One entry for each DeepSpeed configuration (those of `ds_configs/` and the config's own) and number of
    ranks: `memory` of `memory.RankMemory`, without and with recompute; the `cards` it fits; `traffic`."""
    from plast_train.training.deepspeed_config import deepspeed_names, load_deepspeed_config
    from plast_train.training.memory import rank_memory
    from plast_train.training.traffic import step_traffic

    entries = []
    for name in dict.fromkeys([*deepspeed_names(), config.train.deepspeed]):
        named = config.model_copy(update={"train": config.train.model_copy(update={"deepspeed": name})})
        zero = load_deepspeed_config(named)["zero_optimization"]
        for count in ranks:
            kept, recomputed = (
                rank_memory(model, zero, count, training.longest_row, training.most_labels, recompute)
                for recompute in (False, True)
            )
            entries.append(
                {
                    "deepspeed": name,
                    "zero_stage": zero["stage"],
                    "ranks": count,
                    "memory": kept.as_dict(),
                    "memory_with_recompute": recomputed.as_dict(),
                    "cards": [card for card in CARDS if fits(kept.peak, card)],
                    "cards_with_recompute": [card for card in CARDS if fits(recomputed.peak, card)],
                    "traffic": step_traffic(model, zero, count, micro_steps(training, count)),
                }
            )
    return entries


def fits(peak: int, gigabytes: float) -> bool:
    """Whether `peak` bytes fit a card of that many GB."""
    return peak <= USABLE * gigabytes * GIB


def micro_steps(training: TrainingWork, ranks: int) -> int:
    """Packed rows that each rank runs in a step."""
    return math.ceil(training.rows / ranks)


def times(
    training: TrainingWork, collecting: CollectingWork, ranks: Sequence[int], rank_flops: float
) -> list[dict[str, Any]]:
    """Seconds by number of ranks when each does `rank_flops` FLOP/s. Recomputing runs at the same speed, but
    is no useful work. `idle_share`: of the ranks' time, for rows that are missing to a multiple of them."""
    entries = []
    for count in ranks:
        rounds = micro_steps(training, count)
        per_step = rounds * training.useful_flops / training.rows / rank_flops
        more = 1 + training.recompute_flops / training.useful_flops
        entries.append(
            {
                "ranks": count,
                "micro_steps": rounds,
                "idle_share": 1 - training.rows / (rounds * count),
                "seconds_per_step": per_step,
                "training_seconds": per_step * training.steps,
                "training_seconds_with_recompute": per_step * training.steps * more,
                "collecting_seconds": math.ceil(collecting.rows / count)
                * collecting.useful_flops
                / collecting.rows
                / rank_flops,
            }
        )
    return entries


def recommend(
    settings: Sequence[dict[str, Any]], training: TrainingWork, gpus: int, gigabytes: float
) -> dict[str, Any]:
    """The DeepSpeed configuration, and whether to recompute, that cost least among those that fit: whole
    weights before partitioned ones, which travel every micro-step, and those before weights on the host;
    within these, no recompute before recompute; then the fewest bytes sent; then the least memory."""
    fitting = []
    for entry in settings:
        if entry["ranks"] != gpus:
            continue
        sent = sum(entry["traffic"].values())
        for recompute in (False, True):
            memory = entry["memory_with_recompute" if recompute else "memory"]
            if fits(memory["peak"], gigabytes):
                key = (memory["host"] > 0, entry["zero_stage"] == 3, recompute, sent, memory["peak"])
                fitting.append((key, entry, recompute, memory["peak"]))
    if not fitting:
        smallest = min(
            (e["memory_with_recompute"]["peak"], e["deepspeed"]) for e in settings if e["ranks"] == gpus
        )
        return {
            "deepspeed": None,
            "recompute": None,
            "why": f"nothing fits {gigabytes:g} GB: {smallest[1]} with recompute still takes "
            f"{smallest[0] / GIB:.1f} GiB; lower train.tokens_per_row (a row has {training.longest_row:,} "
            "tokens) or take larger GPUs",
        }
    _, entry, recompute, peak = min(fitting, key=lambda candidate: candidate[0])
    return {
        "deepspeed": entry["deepspeed"],
        "recompute": recompute,
        "why": _why(settings, training, gpus, gigabytes, entry, recompute, peak),
    }


def _why(
    settings: Sequence[dict[str, Any]],
    training: TrainingWork,
    gpus: int,
    gigabytes: float,
    entry: dict[str, Any],
    recompute: bool,
    peak: int,
) -> str:
    reasons = [f"{peak / GIB:.1f} GiB of {gigabytes:g} GB a rank"]
    if entry["zero_stage"] < 3:
        reasons.append("whole weights fit, so that only gradients and trained weights travel")
    else:
        whole = min(
            e["memory_with_recompute"]["peak"] for e in settings if e["ranks"] == gpus and e["zero_stage"] < 3
        )
        reasons.append(f"with whole weights a rank would take {whole / GIB:.1f} GiB")
    if recompute:
        more = training.recompute_flops / training.useful_flops
        without = entry["memory"]["peak"] / GIB
        reasons.append(f"without recompute {without:.1f} GiB; it costs {more:.0%} more time")
    else:
        reasons.append("activations fit, so nothing is recomputed")
    return "; ".join(reasons)
