"""The training loop."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from plast_train.data.token_tree import TokenTree
from plast_train.errors import Diverged, Interrupted
from plast_train.training.batches import Batch, batches
from plast_train.training.engine import learning_rate, set_learning_rate
from plast_train.training.flops import step_flops
from plast_train.training.freezing_proof import require_gradients
from plast_train.training.losses import token_losses
from plast_train.training.meters import Meters, rates
from plast_train.training.state import Training


def run_loop(training: Training, start: int) -> None:
    """Trains from after `start` steps to the plan's end.

    Raises:
        Diverged: the loss or the gradient is not finite; the checkpoints published so far remain.
        UserError: a checkpoint could not be written; likewise.
        Interrupted: a stop signal came; a checkpoint was published.
    """
    ranks, engine, config, total = training.ranks, training.engine, training.config, len(training.plan.steps)
    saver, identity = training.saver, training.identity
    meters = Meters(training.run.metrics, training.run.tensorboard, start) if ranks.is_first else None
    saved_at = began = time.monotonic()
    with ranks.progress("train", total, "steps", done=start) as progress:
        for step, batch in enumerate(batches(training.plan.steps[start:], training.lvlm, ranks), start + 1):
            rate = learning_rate(step - 1, total, config.train)
            set_learning_rate(engine, rate)
            loss = _forward_backward(training, step, batch)
            engine.step()  # DeepSpeed leaves the weights as they are where the gradient is not finite
            norm = _finite_norm(training, step)
            # After the first step, so that a layer without a gradient is not found after days; at the plan's
            # end `train` asks once more, for what a first step may leave without one.
            if step == start + 1:
                require_gradients(training, step)

            # Before validation, which is not part of the step's speed.
            seconds = time.monotonic() - began
            rows = batch.step.rows
            flops = step_flops(training.shape, rows, identity.layers, identity.modules, config.train)
            values: dict[str, Any] = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
            values |= rates(seconds, batch, flops, ranks.device, ranks.world)
            if step % config.train.validate_every == 0 or step == total:
                values["validation_loss"] = training.validation.losses()
            if meters is not None:
                meters.write(step, values)
            progress.add(1, f"loss {loss:.4f}")

            stop = ranks.should_stop()
            # Clocks differ and a save fails on one rank first, but all ranks must save or stop together.
            due_here = time.monotonic() - saved_at >= 60 * config.checkpoint.every_minutes
            flags = torch.tensor([due_here, saver.failed], dtype=torch.int32)
            due, failed = (bool(count) for count in ranks.sum(flags))
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


def _forward_backward(training: Training, step: int, batch: Batch) -> float:
    """Leaves the step's gradients in the engine and returns its loss: the mean over its label tokens on all
    ranks."""
    engine, ranks = training.engine, training.ranks
    # DeepSpeed divides gradients by the number of micro-steps and averages them over ranks. A row's loss is
    # summed over its labels, so world · micro-steps undoes both divisions, and dividing by the labels of the
    # whole step (all ranks, all micro-steps) gives every token the same weight, however the rows were packed
    # and shared.
    weight = ranks.world * len(batch.rows) / batch.step.labels
    sums: list[torch.Tensor] = []
    for number, (rank_row, row) in enumerate(batch.rows):
        loss = token_losses(engine, training.lvlm, row).sum()
        # A row that only keeps this rank in step with the others is run, but adds nothing.
        engine.backward(loss * (weight if rank_row.counts else 0.0))
        sums.append(loss.detach())
        ranks.alive()
        # Between micro-steps `step` only counts them. The last one is left to the caller, so that no weight
        # has changed when the loss turns out not to be finite.
        if number + 1 < len(batch.rows):
            engine.step()
    # One transfer from the device per step; added up in float64, so that the loss hardly depends on how the
    # rows are shared among ranks.
    counted = [
        (rank_row.trees, value)
        for (rank_row, _), value in zip(batch.rows, torch.stack(sums).tolist(), strict=True)
        if rank_row.counts
    ]
    total = torch.tensor(sum(value for _, value in counted), dtype=torch.float64)
    mean = float(ranks.sum(total)) / batch.step.labels
    if not math.isfinite(mean):
        bad = [tree for trees, value in counted if not math.isfinite(value) for tree in trees]
        ids = {i for part in ranks.gather(_record_ids(training, bad)) for i in part}
        raise _diverged(training, f"the loss of step {step} is {mean}", ids)
    return mean


def _finite_norm(training: Training, step: int) -> float:
    """The norm of the step's gradient before clipping, over all ranks."""
    norm = float(training.engine.get_global_grad_norm())
    if not training.engine.was_step_applied() or not math.isfinite(norm):
        # The gradient is a sum over all rows, so any record of the step may be the cause.
        trees = [tree for row in training.plan.steps[step - 1].rows for tree in row]
        ids = _record_ids(training, trees)
        raise _diverged(training, f"the gradient of step {step} is not finite", ids)
    return norm


def _record_ids(training: Training, trees: list[TokenTree]) -> set[str]:
    return {training.records[s.key.record].id for tree in trees for s in tree.sequences}


def _diverged(training: Training, what: str, ids: set[str]) -> Diverged:
    training.saver.wait()  # the last good checkpoint may still be being published
    last = training.saver.last or "none, the base is unchanged"
    return Diverged(
        f"{what}; records {', '.join(sorted(ids))}; last good checkpoint: {last}. "
        f"Lower train.learning_rate ({training.config.train.learning_rate}) or look at these records"
    )
