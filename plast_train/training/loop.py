"""The training loop."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch.nn import Parameter

from plast_train.checkpoint.format import Identity
from plast_train.checkpoint.save import Saver
from plast_train.config import Config
from plast_train.data.packing import RankRow
from plast_train.data.questions import Record
from plast_train.data.sampling import TrainingPlan
from plast_train.errors import Diverged, Interrupted
from plast_train.lvlm.loading import Lvlm
from plast_train.run_folder import RunFolder
from plast_train.runtime.distributed import Ranks
from plast_train.training.batches import Batch, batches, token_losses
from plast_train.training.engine import learning_rate, set_learning_rate
from plast_train.training.flops import ModelShape
from plast_train.training.flops_methods import method_flops
from plast_train.training.freezing_proof import require_gradients
from plast_train.training.meters import Meters, rates
from plast_train.training.validation import Validation


@dataclass
class Training:
    """Everything one training run is made of, as one rank holds it."""

    config: Config
    run: RunFolder
    ranks: Ranks
    lvlm: Lvlm
    records: list[Record]
    plan: TrainingPlan
    validation: Validation
    engine: DeepSpeedEngine
    trained: dict[str, Parameter]
    identity: Identity
    shape: ModelShape
    saver: Saver


def run_loop(training: Training, start: int) -> None:
    """Trains from after `start` steps to the plan's end.

    Raises:
        Diverged: the loss or the gradient is not finite; the checkpoints published before are there.
        UserError: a checkpoint could not be written; likewise.
        Interrupted: a stop signal came; a checkpoint was published.
    """
    ranks, engine, config, total = training.ranks, training.engine, training.config, len(training.plan.steps)
    saver = training.saver
    meters = Meters(training.run.metrics, training.run.tensorboard, start) if ranks.is_first else None
    saved_at = began = time.monotonic()
    with ranks.progress("train", total, "steps", done=start) as progress:
        for step, batch in enumerate(batches(training.plan.steps[start:], training.lvlm, ranks), start + 1):
            rate = learning_rate(step - 1, total, config.train)
            set_learning_rate(engine, rate)
            loss = _forward_backward(training, step, batch)
            engine.step()  # DeepSpeed leaves the weights as they are where the gradient is not finite
            norm = _finite_norm(training, step)
            if step == start + 1:
                require_gradients(training, step)
            seconds = time.monotonic() - began

            values: dict[str, Any] = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
            values |= _rates(training, batch, seconds)
            if step % config.train.validate_every == 0 or step == total:
                values["validation_loss"] = training.validation.losses()
            if meters is not None:
                meters.write(step, values)
            progress.add(1, f"loss {loss:.4f}")

            stop = ranks.should_stop()
            due, failed = _on_any(
                ranks, time.monotonic() - saved_at >= 60 * config.checkpoint.every_minutes, saver.failed
            )
            if failed:
                saver.wait()  # raises, on every rank
            if due or stop or step == total or step % config.checkpoint.every_steps == 0:
                saver.save(engine, training.trained, step)
                saved_at = time.monotonic()
            if stop and step < total:
                saver.wait()
                raise Interrupted(f"stopped after step {step} of {total}, saved in {saver.last}")
            began = time.monotonic()
    saver.close()
    if meters is not None:
        meters.close()


def _on_any(ranks: Ranks, *flags: bool) -> list[bool]:
    """Each flag, on every rank alike: true if it is true on any."""
    return [bool(count) for count in ranks.sum(torch.tensor(flags, dtype=torch.int32))]


def _forward_backward(training: Training, step: int, batch: Batch) -> float:
    """The step's loss, the mean over its label tokens on all ranks, after leaving its gradients in the
    engine. The last micro-step is not yet closed, so nothing has touched the weights."""
    engine, ranks = training.engine, training.ranks
    # DeepSpeed averages over ranks and micro-steps; this undoes it, for the mean over the step's labels.
    weight = ranks.world * len(batch.rows) / batch.step.labels
    sums: list[torch.Tensor] = []
    for number, (rank_row, row) in enumerate(batch.rows):
        loss = token_losses(engine, training.lvlm, row).sum()
        engine.backward(loss * (weight if rank_row.counts else 0.0))
        sums.append(loss.detach())
        ranks.alive()
        if number + 1 < len(batch.rows):
            engine.step()  # only counts the micro-step
    values = zip(batch.rows, torch.stack(sums).tolist(), strict=True)
    counted = [(rank_row, float(x)) for (rank_row, _), x in values if rank_row.counts]
    total = torch.tensor(sum(x for _, x in counted), dtype=torch.float64)
    mean = float(ranks.sum(total)) / batch.step.labels
    if not math.isfinite(mean):
        bad = [rank_row for rank_row, x in counted if not math.isfinite(x)]
        ids = sorted({i for part in ranks.gather(_record_ids(training, bad)) for i in part})
        raise Diverged(_not_finite(training, f"the loss of step {step} is {mean}", ids))
    return mean


def _finite_norm(training: Training, step: int) -> float:
    norm = float(training.engine.get_global_grad_norm())
    if not training.engine.was_step_applied() or not math.isfinite(norm):
        planned = training.plan.steps[step - 1]
        keys = {s.key.record for trees in planned.rows for tree in trees for s in tree.sequences}
        ids = sorted(training.records[number].id for number in keys)
        raise Diverged(_not_finite(training, f"the gradient of step {step} is not finite", ids))
    return norm


def _record_ids(training: Training, rows: list[RankRow]) -> list[str]:
    numbers = {s.key.record for row in rows for tree in row.trees for s in tree.sequences}
    return [training.records[number].id for number in numbers]


def _not_finite(training: Training, what: str, ids: list[str]) -> str:
    training.saver.wait()
    last = training.saver.last or "none, the base is unchanged"
    return (
        f"{what}; records {', '.join(ids)}; last good checkpoint: {last}. "
        f"Lower train.learning_rate ({training.config.train.learning_rate}) or look at these records"
    )


def _rates(training: Training, batch: Batch, seconds: float) -> dict[str, float | None]:
    step, ranks = batch.step, training.ranks
    identity = training.identity
    flops = method_flops(training.shape, step.rows, identity.layers, identity.modules, training.config.train)
    return rates(seconds, batch.waited, step.samples, step.tokens, flops, ranks.device, ranks.world)
