"""The training step's engine: DeepSpeed ZeRO 1, 2 or 3 around AdamW on the trained tensors."""

from __future__ import annotations

import gc
import math
import warnings
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from plast_train.config import Config, TrainConfig
from plast_train.lvlm.lora import remove_adapters
from plast_train.runtime.deepspeed_config import load_deepspeed_config, offloads_optimizer, with_batch


def build_engine(
    model: torch.nn.Module,
    parameters: dict[str, torch.nn.Parameter],
    config: Config,
    world: int,
    micro_steps: int,
) -> DeepSpeedEngine:
    """DeepSpeed around `model`; AdamW with fp32 masters and moments for `parameters` alone.

    `micro_steps` packed rows per rank make one optimizer step. Weight decay applies to every trained tensor
    alike, norms included.

    Raises:
        UserError: the DeepSpeed JSON contradicts the config.
    """
    settings = with_batch(load_deepspeed_config(config), world, micro_steps)
    # DeepSpeed calls collectives by names that torch 2.13 deprecates: several log lines per step.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+_tensor. is deprecated")
    train = config.train
    optimizer_type: Any = torch.optim.AdamW
    options: dict[str, Any] = {}
    if offloads_optimizer(settings):
        # Steps the states in host memory, where they are. DeepSpeed compiles it at its first use, so it is
        # imported only when it is needed.
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer_type, options = DeepSpeedCPUAdam, {"adamw_mode": True}
    optimizer = optimizer_type(
        list(parameters.values()),
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
        **options,
    )
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=settings,
        dist_init_required=False,
    )
    return engine


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


def release_engine(engine: DeepSpeedEngine, model: torch.nn.Module) -> None:
    """Takes DeepSpeed's hooks and states, and LoRA adapters, off the model, which later stages use again."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.empty_partition_cache()
    engine.destroy()
    for parameter in model.parameters():
        parameter.grad = None  # of a step that was not taken
        # DeepSpeed leaves references to its optimizer here, which would keep masters and moments alive.
        for keeper in ("_z3_optimizer", "_zero_optimizer"):
            parameter.__dict__.pop(keeper, None)
    remove_adapters(model)
    model.requires_grad_(False)
    engine.optimizer.optimizer.state.clear()
    if engine.device.type == "cuda":
        # The engine is part of reference cycles, so only the collector frees its memory.
        gc.collect()
        torch.cuda.empty_cache()
