"""DeepSpeed's settings for a run, from a JSON in `ds_configs/` or the user's own.

`"auto"` values come from the config; a value that contradicts the config is refused. Nothing here imports
torch or DeepSpeed, so that the launcher finds every contradiction before ranks start.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from plast_train.config import Config
from plast_train.errors import UserError, nearest

AUTO = "auto"


def load_deepspeed_config(config: Config) -> dict[str, Any]:
    """The settings for `deepspeed.initialize`, except for the number of micro-steps (see `with_batch`).

    Raises:
        UserError: unknown name, unreadable or invalid JSON, a ZeRO stage other than 1, 2, 3, fp16, or a value
            that contradicts the config; the message names the file, the key and both values.
    """
    source, settings = _read(config.train.deepspeed)
    _check_batch(source, settings, config)
    _check_precision(source, settings, config)
    _check_optimizer(source, settings, config)
    _check_zero(source, settings, config)
    clipping = settings.get("gradient_clipping", AUTO)
    _agree(source, "gradient_clipping", clipping, "train.gradient_clipping", config.train.gradient_clipping)
    # DeepSpeed's own default is 1.0, so clipping is always set, even when it is off.
    settings["gradient_clipping"] = config.train.gradient_clipping
    settings["train_micro_batch_size_per_gpu"] = 1  # one packed row
    settings.setdefault("steps_per_print", 2**31)  # the run's own progress line is enough
    _no_auto_left(source, settings)
    return settings


def with_batch(settings: dict[str, Any], world: int, micro_steps: int) -> dict[str, Any]:
    """The settings with the number of micro-steps in a step. DeepSpeed's batch size counts packed rows."""
    return settings | {
        "gradient_accumulation_steps": micro_steps,
        "train_batch_size": world * micro_steps,
    }


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    offload = settings["zero_optimization"].get("offload_optimizer") or {}
    return offload.get("device", "none") == "cpu"


def deepspeed_names() -> list[str]:
    """Names of the JSON files that come with the program."""
    return sorted(
        Path(f.name).stem for f in resources.files("ds_configs").iterdir() if f.name.endswith(".json")
    )


def _read(name: str) -> tuple[str, dict[str, Any]]:
    if name.endswith(".json"):
        source = name
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: cannot be read ({error}); train.deepspeed names it") from None
    elif name in deepspeed_names():
        source = f"ds_configs/{name}.json"
        text = (resources.files("ds_configs") / f"{name}.json").read_text(encoding="utf-8")
    else:
        names = deepspeed_names()
        raise UserError(
            f"train.deepspeed: unknown DeepSpeed configuration '{name}'{nearest(name, names)} "
            f"(choose {', '.join(names)}, or the path of a .json file)"
        )
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}, line {error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{source}: must be a JSON object")
    return source, settings


def _agree(source: str, key: str, value: Any, option: str, wanted: Any) -> None:
    if value != AUTO and value != wanted:
        raise UserError(
            f"{source}: {key} is {json.dumps(value)}, but {option} is {json.dumps(wanted)}; "
            f'make them equal or write "auto"'
        )


def _section(source: str, settings: dict[str, Any], key: str) -> dict[str, Any]:
    value = settings.get(key, {})
    if not isinstance(value, dict):
        raise UserError(f"{source}: {key} is {json.dumps(value)}, but must be a JSON object")
    return value


def _check_batch(source: str, settings: dict[str, Any], config: Config) -> None:
    batch = settings.pop("train_batch_size", AUTO)
    _agree(source, "train_batch_size", batch, "train.global_batch", config.train.global_batch)
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        value = settings.pop(key, AUTO)
        if value != AUTO:
            raise UserError(
                f"{source}: {key} is {json.dumps(value)}, but follows from train.global_batch "
                f"({config.train.global_batch}), train.tokens_per_row ({config.train.tokens_per_row}) "
                f'and the number of ranks; write "auto"'
            )


def _check_precision(source: str, settings: dict[str, Any], config: Config) -> None:
    for key in ("fp16", "amp", "torch_autocast"):
        enabled = _section(source, settings, key).get("enabled", False)
        if enabled not in (False, AUTO):
            raise UserError(
                f"{source}: {key}.enabled is {json.dumps(enabled)}, but model.dtype is {config.model.dtype}; "
                f"training runs in bfloat16 or float32: remove the section"
            )
        settings.pop(key, None)
    bf16 = _section(source, settings, "bf16")
    wanted = config.model.dtype == "bfloat16"
    enabled = bf16.get("enabled", AUTO)
    if enabled not in (AUTO, wanted):
        raise UserError(
            f"{source}: bf16.enabled is {json.dumps(enabled)}, but model.dtype is {config.model.dtype}; "
            f'make them agree or write "auto"'
        )
    for key in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        if bf16.get(key, False):
            raise UserError(
                f"{source}: bf16.{key} is true, but master weights and moments are fp32; remove it"
            )
    # Without it DeepSpeed takes a step with a gradient that is not finite.
    check = bf16.get("check_grad_overflow", AUTO)
    _agree(source, "bf16.check_grad_overflow", check, "the check of gradients", True)
    settings["bf16"] = bf16 | {"enabled": wanted, "check_grad_overflow": True}


def _check_optimizer(source: str, settings: dict[str, Any], config: Config) -> None:
    if "scheduler" in settings:
        kind = json.dumps(_section(source, settings, "scheduler").get("type"))
        raise UserError(
            f"{source}: scheduler is {kind}, but the schedule is linear warm-up (train.warmup_fraction "
            f"{config.train.warmup_fraction}) and cosine from train.learning_rate; remove the section"
        )
    if "optimizer" not in settings:
        return
    section = _section(source, settings, "optimizer")
    params = _section(source, section, "params")
    _agree(source, "optimizer.type", section.get("type"), "the optimizer", "AdamW")
    train = config.train
    wanted = {
        "lr": ("train.learning_rate", train.learning_rate),
        "betas": ("train.betas", list(train.betas)),
        "weight_decay": ("train.weight_decay", train.weight_decay),
        "eps": ("AdamW's epsilon", 1e-8),
    }
    for key, value in params.items():
        if key not in wanted:
            raise UserError(f"{source}: optimizer.params.{key} has no counterpart in the config; remove it")
        _agree(source, f"optimizer.params.{key}", value, *wanted[key])
    del settings["optimizer"]  # `engine.build_engine` makes it from the config


def _check_zero(source: str, settings: dict[str, Any], config: Config) -> None:
    zero = _section(source, settings, "zero_optimization")
    if zero.get("stage") not in (1, 2, 3):
        stage = json.dumps(zero.get("stage"))
        raise UserError(f"{source}: zero_optimization.stage is {stage}, but must be 1, 2 or 3")
    for key in ("offload_optimizer", "offload_param"):
        device = _section(source, zero, key).get("device", "none")
        if device not in ("none", "cpu"):
            raise UserError(
                f"{source}: zero_optimization.{key}.device is {json.dumps(device)}; use cpu or none"
            )
    if zero.get("mics_shard_size", -1) not in (-1, AUTO):
        raise UserError(f"{source}: zero_optimization.mics_shard_size is not supported; remove it")
    if zero.get("compute_grad_norm") is False:
        raise UserError(
            f"{source}: zero_optimization.compute_grad_norm is false, but the norm is logged; remove it"
        )
    accumulate = _section(source, settings, "data_types").get("grad_accum_dtype")
    if zero["stage"] == 1 and config.model.dtype == "bfloat16" and accumulate == "fp32":
        # DeepSpeed then takes another optimizer class, whose states checkpoints would not find.
        raise UserError(
            f"{source}: data_types.grad_accum_dtype is fp32 with ZeRO stage 1 and model.dtype bfloat16; "
            "use stage 2"
        )
    # As in transformers' integration: sizes that nobody chose keep DeepSpeed's own defaults.
    settings["zero_optimization"] = {key: value for key, value in zero.items() if value != AUTO}


def _no_auto_left(source: str, settings: dict[str, Any], prefix: str = "") -> None:
    for key, value in settings.items():
        if isinstance(value, dict):
            _no_auto_left(source, value, f"{prefix}{key}.")
        elif value == AUTO:
            raise UserError(
                f'{source}: {prefix}{key} is "auto", but the config has no value for it; write one'
            )
