"""What a run needs of memory, traffic and time, and which DeepSpeed configuration to choose."""

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
CARDS = (24, 40, 80, 141)  # of common GPUs, in GB, which for their makers are GiB
# Of a card's memory; the rest is for the driver and for what an estimate misses.
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
        for num_ranks in ranks:
            kept, recomputed = (
                rank_memory(model, zero, num_ranks, training.longest_row, training.most_labels, recompute)
                for recompute in (False, True)
            )
            entries.append(
                {
                    "deepspeed": name,
                    "zero_stage": zero["stage"],
                    "ranks": num_ranks,
                    "memory": kept.as_dict(),
                    "memory_with_recompute": recomputed.as_dict(),
                    "cards": [card for card in CARDS if fits(kept.peak, card)],
                    "cards_with_recompute": [card for card in CARDS if fits(recomputed.peak, card)],
                    "traffic": step_traffic(model, zero, num_ranks, micro_steps(training, num_ranks)),
                }
            )
    return entries


def fits(peak: int, gigabytes: float) -> bool:
    """Whether `peak` bytes fit a card of that many GB."""
    return peak <= USABLE * gigabytes * GIB


def micro_steps(training: TrainingWork, num_ranks: int) -> int:
    """Number of packed rows that each rank runs in a step."""
    return math.ceil(training.rows / num_ranks)


def times(
    training: TrainingWork, collecting: CollectingWork, ranks: Sequence[int], rank_flops: float
) -> list[dict[str, Any]]:
    """Seconds by number of ranks when each does `rank_flops` FLOP/s of useful work. `idle_share` of the
    ranks' time is lost where the rows of a step are not a multiple of their number."""
    # Recomputing runs at the same speed, but is not useful work.
    slower = 1 + training.recompute_flops / training.useful_flops
    entries = []
    for num_ranks in ranks:
        num_rows = micro_steps(training, num_ranks)
        per_step = num_rows * training.useful_flops / training.rows / rank_flops
        per_collecting_row = collecting.useful_flops / collecting.rows / rank_flops
        entries.append(
            {
                "ranks": num_ranks,
                "micro_steps": num_rows,
                "idle_share": 1 - training.rows / (num_rows * num_ranks),
                "seconds_per_step": per_step,
                "training_seconds": per_step * training.steps,
                "training_seconds_with_recompute": per_step * training.steps * slower,
                "collecting_seconds": math.ceil(collecting.rows / num_ranks) * per_collecting_row,
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
        """The lowest is chosen. Whole weights come before partitioned ones, which travel every micro-step,
        and those before weights on the host; then no recompute before recompute; then fewer bytes sent; then
        less memory."""
        partitioned = self.entry["zero_stage"] == 3
        return (self.memory["host"] > 0, partitioned, self.recompute, self.sent, self.memory["peak"])

    def why_not(self, chosen: Candidate) -> str:
        """By the first part of the cost in which this one is higher."""
        texts = (
            f"moves {_gib(self.memory['host'])} of weights and optimizer per rank to and from the host",
            f"gathers the weights every micro-step and sends {_gb(self.sent)} per step, not "
            f"{_gb(chosen.sent)}",
            f"fits only with recompute: {_gib(self.entry['memory']['peak'])} without",
            f"sends {_gb(self.sent)} per step, not {_gb(chosen.sent)}",
            f"sends as much and takes {_gib(self.memory['peak'])}, not {_gib(chosen.memory['peak'])}",
        )
        pairs = zip(texts, self.cost, chosen.cost, strict=True)
        return next((text for text, own, others in pairs if own > others), "costs as much")


def recommend(
    settings: Sequence[dict[str, Any]], training: TrainingWork, num_gpus: int, gigabytes: float
) -> dict[str, Any]:
    """The DeepSpeed configuration, and whether to recompute, of least cost (`Candidate.cost`) among those
    that fit `num_gpus` of that memory: `deepspeed`, `recompute` (both None where nothing fits), `why`, and
    `why_not` for each other configuration."""
    entries = [entry for entry in settings if entry["ranks"] == num_gpus]
    fitting: dict[str, Candidate] = {}
    for candidate in (Candidate(entry, recompute) for entry in entries for recompute in (True, False)):
        if fits(candidate.memory["peak"], gigabytes):
            # The second one overwrites the first: without recompute where that fits.
            fitting[candidate.entry["deepspeed"]] = candidate
    too_large = {
        entry["deepspeed"]: f"takes {_gib(entry['memory_with_recompute']['peak'])} even with recompute"
        for entry in entries
        if entry["deepspeed"] not in fitting
    }
    if not fitting:
        smallest = min((e["memory_with_recompute"]["peak"], e["deepspeed"]) for e in entries)
        why = (
            f"nothing fits {gigabytes:g} GB: {smallest[1]} with recompute still takes {_gib(smallest[0])}; "
            f"lower train.tokens_per_row (a row has {training.longest_row:,} tokens) or use larger GPUs"
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
    reasons = [f"{_gib(chosen.memory['peak'])} of {gigabytes:g} GB per rank"]
    if chosen.memory["host"]:
        reasons.append(f"it needs {_gib(chosen.memory['host'])} of host memory per rank")
    if chosen.entry["zero_stage"] < 3:
        reasons.append("whole weights fit, so only gradients and trained weights travel")
    else:
        reasons.append("whole weights do not fit, so each rank holds a part of them")
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
