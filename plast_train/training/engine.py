"""The training step's engine: DeepSpeed ZeRO 1, 2 or 3 around AdamW on the trained tensors."""

from __future__ import annotations

import math
import warnings

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from plast_train.config import Config, TrainConfig
from plast_train.runtime.deepspeed_config import load_deepspeed_config, offloads_optimizer, with_batch


def build_engine(
    model: torch.nn.Module,
    parameters: dict[str, torch.nn.Parameter],
    config: Config,
    world: int,
    micro_steps: int,
) -> DeepSpeedEngine:
    """DeepSpeed around `model`; AdamW with fp32 masters and moments for `parameters` alone.

    `micro_steps` packed rows a rank make one optimizer step. Weight decay, where asked for, is for every
    trained tensor alike.

    Raises:
        UserError: the DeepSpeed JSON contradicts the config.
    """
    settings = with_batch(load_deepspeed_config(config), world, micro_steps)
    # DeepSpeed calls collectives by names that torch 2.13 renames: several log lines a step.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+_tensor. is deprecated")
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=_optimizer(parameters, config.train, offloads_optimizer(settings)),
        config=settings,
        dist_init_required=False,
    )
    return engine


def _optimizer(
    parameters: dict[str, torch.nn.Parameter], train: TrainConfig, on_cpu: bool
) -> torch.optim.Optimizer:
    if on_cpu:
        # Steps the states where they lie; compiled at its first use, hence only when offloading.
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(
            list(parameters.values()),
            lr=train.learning_rate,
            betas=train.betas,
            weight_decay=train.weight_decay,
            adamw_mode=True,
        )
    return torch.optim.AdamW(
        parameters.values(), lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay
    )


def learning_rate(step: int, total_steps: int, train: TrainConfig) -> float:
    """The rate of the 0-based `step`: linear warm-up, then cosine to 0 (SGDR without restarts,
    Loshchilov & Hutter 2017). A pure function, so there is no scheduler state to save."""
    warmup = math.ceil(train.warmup_fraction * total_steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return train.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(engine: DeepSpeedEngine, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
