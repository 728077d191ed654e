"""What a run asks of its GPUs, memory, traffic and time, and which DeepSpeed configuration to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plast_train.config import Config

if TYPE_CHECKING:
    from launcher.plan.work import CollectingWork, TrainingWork
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
    from plast_train.runtime.deepspeed_config import deepspeed_names, load_deepspeed_config
    from plast_train.training.memory import rank_memory, step_traffic

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


@dataclass(frozen=True)
class Candidate:
    """A DeepSpeed configuration on the given GPUs, an entry of `compare_settings`, with or without
    recompute."""

    entry: dict[str, Any]
    recompute: bool

    @property
    def memory(self) -> dict[str, int]:
        kept: dict[str, int] = self.entry["memory_with_recompute" if self.recompute else "memory"]
        return kept

    @property
    def sent(self) -> int:
        return sum(self.entry["traffic"].values())

    @property
    def cost(self) -> tuple[float, ...]:
        """Least first: whole weights before partitioned ones, which travel every micro-step, and those before
        weights on the host; within these, no recompute before recompute; then the fewest bytes sent; then the
        least memory."""
        partitioned = self.entry["zero_stage"] == 3
        return (self.memory["host"] > 0, partitioned, self.recompute, self.sent, self.memory["peak"])

    def why_not(self, chosen: Candidate) -> str:
        """By the first thing in which this one costs more."""
        texts = (
            f"moves {_gib(self.memory['host'])} of weights and optimizer a rank to and from the host",
            f"gathers the weights every micro-step and sends {_gb(self.sent)} a step, not {_gb(chosen.sent)}",
            f"fits with recompute alone: {_gib(self.entry['memory']['peak'])} without",
            f"sends {_gb(self.sent)} a step, not {_gb(chosen.sent)}",
            f"sends as much and takes {_gib(self.memory['peak'])}, not {_gib(chosen.memory['peak'])}",
        )
        pairs = zip(texts, self.cost, chosen.cost, strict=True)
        return next((text for text, own, others in pairs if own > others), "costs as much")


def recommend(
    settings: Sequence[dict[str, Any]], training: TrainingWork, gpus: int, gigabytes: float
) -> dict[str, Any]:
    """The DeepSpeed configuration, and whether to recompute, that cost least (`Candidate.cost`) among those
    that fit `gpus` of that memory: `deepspeed`, `recompute` (both None where nothing fits), `why`, and
    `why_not` by each other configuration."""
    entries = [entry for entry in settings if entry["ranks"] == gpus]
    fitting: dict[str, Candidate] = {}
    for candidate in (Candidate(entry, recompute) for entry in entries for recompute in (True, False)):
        if fits(candidate.memory["peak"], gigabytes):
            fitting[candidate.entry["deepspeed"]] = candidate  # without recompute, where that fits
    too_large = {
        entry["deepspeed"]: f"takes {_gib(entry['memory_with_recompute']['peak'])} even with recompute"
        for entry in entries
        if entry["deepspeed"] not in fitting
    }
    if not fitting:
        smallest = min((e["memory_with_recompute"]["peak"], e["deepspeed"]) for e in entries)
        why = (
            f"nothing fits {gigabytes:g} GB: {smallest[1]} with recompute still takes {_gib(smallest[0])}; "
            f"lower train.tokens_per_row (a row has {training.longest_row:,} tokens) or take larger GPUs"
        )
        return {"deepspeed": None, "recompute": None, "why": why, "why_not": too_large}
    chosen = min(fitting.values(), key=lambda candidate: candidate.cost)
    name = chosen.entry["deepspeed"]
    others = {other: candidate.why_not(chosen) for other, candidate in fitting.items() if other != name}
    return {
        "deepspeed": name,
        "recompute": chosen.recompute,
        "why": _why(chosen, training, gigabytes),
        "why_not": others | too_large,
    }


def _why(chosen: Candidate, training: TrainingWork, gigabytes: float) -> str:
    reasons = [f"{_gib(chosen.memory['peak'])} of {gigabytes:g} GB a rank"]
    if chosen.memory["host"]:
        reasons.append(f"it needs {_gib(chosen.memory['host'])} of host memory a rank")
    if chosen.entry["zero_stage"] < 3:
        reasons.append("whole weights fit, so that only gradients and trained weights travel")
    else:
        reasons.append("whole weights do not fit, so that each rank holds a part of them")
    if chosen.recompute:
        more = training.recompute_flops / training.useful_flops
        without = _gib(chosen.entry["memory"]["peak"])
        reasons.append(f"without recompute {without}; it costs {more:.0%} more time")
    else:
        reasons.append("activations fit, so nothing is recomputed")
    return "; ".join(reasons)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
