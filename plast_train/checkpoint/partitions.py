"""Which part of each trained tensor's fp32 master and Adam moments this rank owns under ZeRO 1, 2 and 3.

DeepSpeed keeps them as slices of flat partitions. This is the one place that knows where: it reads attributes
of DeepSpeed 0.19's ZeRO optimizers that have no public name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from torch.nn import Parameter

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OwnedRange:
    """Elements `start:stop` of the flattened tensor `name`, and this rank's memory for them: 1-D fp32 views
    of the master and both moments."""

    name: str
    start: int
    stop: int
    views: tuple[torch.Tensor, ...]


def owned_ranges(engine: DeepSpeedEngine, parameters: dict[str, Parameter]) -> list[OwnedRange]:
    """This rank's ranges, in the order of `parameters`; over all ranks they cover each tensor once."""
    _prepare_moments(engine)
    locate = _locate_stage3 if engine.zero_optimization_stage() == 3 else _locate_stage12
    ranges = []
    for name, parameter in parameters.items():
        found = locate(engine.optimizer, parameter)
        if found is None:
            continue
        start, length, flat, offset = found
        state = engine.optimizer.optimizer.state[flat]
        sources = (flat.detach(), *(state[kind] for kind in _MOMENTS))
        views = tuple(source.narrow(0, offset, length) for source in sources)
        ranges.append(OwnedRange(name, start, start + length, views))
    return ranges


def set_adam_step(engine: DeepSpeedEngine, step: int) -> None:
    """Sets how many steps Adam's moments have seen, which its bias correction depends on."""
    for flat in _flat_partitions(engine):
        state = engine.optimizer.optimizer.state[flat]
        if torch.is_tensor(state["step"]):
            state["step"].fill_(step)
        else:
            state["step"] = step


def publish_masters(engine: DeepSpeedEngine) -> None:
    """Writes the masters into the weights that the forward pass uses, as the end of a step does."""
    zero = engine.optimizer
    if engine.zero_optimization_stage() != 3:
        zero.update_lp_params()
        return
    zero._partition_all_parameters()
    for group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _flat_partitions(engine: DeepSpeedEngine) -> list[torch.Tensor]:
    zero = engine.optimizer
    stage3 = engine.zero_optimization_stage() == 3
    flat: list[torch.Tensor] = (
        zero.fp32_partitioned_groups_flat if stage3 else zero.single_partition_of_fp32_groups
    )
    return flat


def _prepare_moments(engine: DeepSpeedEngine) -> None:
    """Gives every flat partition the state that Adam would make in its first step: a checkpoint may be loaded
    before it."""
    adam = engine.optimizer.optimizer
    for flat in _flat_partitions(engine):
        if not adam.state[flat]:
            # DeepSpeed's Adam on the CPU counts steps in a plain integer, torch's in a tensor.
            on_cpu = type(adam).__name__ == "DeepSpeedCPUAdam"
            zeros = {kind: torch.zeros_like(flat, requires_grad=False) for kind in _MOMENTS}
            adam.state[flat] = {"step": 0 if on_cpu else torch.tensor(0.0), **zeros}
    if engine.zero_optimization_stage() != 3:
        # Gives each parameter its `_hp_mapping`, which DeepSpeed makes at the first step only.
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _locate_stage12(zero: Any, parameter: Parameter) -> tuple[int, int, torch.Tensor, int] | None:
    """Start in the tensor, length, the flat partition, offset in it; None where this rank has no part."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    inside, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    return inside.start, inside.numel, flat, there.start


def _locate_stage3(zero: Any, parameter: Parameter) -> tuple[int, int, torch.Tensor, int] | None:
    group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = zero._get_param_partition_rank(parameter) * size
    # Partitions are of equal size, so the last ones may end in padding.
    length = min(size, parameter.ds_numel - start)  # type: ignore[attr-defined]
    if length <= 0:
        return None
    return start, length, zero.fp32_partitioned_groups_flat[group], offset
