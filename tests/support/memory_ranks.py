"""Run by torchrun from test_memory.py: what DeepSpeed holds and sends on each rank, as JSON from rank 0.

Two steps of two micro-steps on a small Llama, bf16, for each ZeRO stage.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
sizes = json.loads(sys.argv[2])
sent = 0.0


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def count_traffic() -> None:
    """Adds up what ring algorithms would send of large tensors (a few bytes of flags are passed over)."""
    backend = sys.modules["deepspeed.comm.torch"].TorchBackend
    ring = (dist.get_world_size() - 1) / dist.get_world_size()

    def counted(name: str, argument: str, position: int, factor: float) -> None:
        original = getattr(backend, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            global sent
            whole = size(kwargs[argument] if argument in kwargs else args[position])
            if whole > 64:
                sent += factor * ring * whole
            return original(*args, **kwargs)

        setattr(backend, name, wrapper)

    counted("all_reduce", "tensor", 1, 2)
    counted("all_gather_into_tensor", "output_tensor", 1, 1)
    counted("reduce_scatter_tensor", "input_tensor", 2, 1)


def measure(stage: int) -> dict[str, float]:
    global sent
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    trained = [p for p in model.parameters() if p.requires_grad]
    zero = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 10**6,
        # Weights are let go at once, which is what the plan's upper bound counts.
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(trained), config=settings, dist_init_required=False
    )
    gradients = 0
    for _step in range(2):
        sent = 0
        for micro_step in range(2):
            ids = torch.randint(0, sizes["vocab_size"], (1, 20))
            engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
            if micro_step == 0:
                gradients = held_gradients(optimizer, model, stage)
            engine.step()
    masters = (
        optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    )
    states = [
        v for s in optimizer.optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.dim()
    ]
    weights = [p.ds_tensor if stage == 3 else p for p in model.parameters()]
    return {
        "weights": sum(map(size, weights)),
        "gradients": gradients,
        "optimizer": sum(map(size, [*masters, *states])),
        "sent": sent,
    }


def held_gradients(optimizer: Any, model: torch.nn.Module, stage: int) -> int:
    """Bytes of gradients between two micro-steps."""
    if stage == 3:
        return size(optimizer.grad_partitions_flat_buffer)
    kept = [g for group in optimizer.all_grad_tensors.values() if group for g in group if g is not None]
    return sum(map(size, kept)) + sum(size(p.grad) for p in model.parameters() if p.grad is not None)


deepspeed.init_distributed("gloo")
count_traffic()
results = {stage: measure(stage) for stage in (1, 2, 3)}
if dist.get_rank() == 0:
    Path(sys.argv[1]).write_text(json.dumps(results))
dist.barrier()
os._exit(0)  # after stage 3 the interpreter sometimes aborts at exit
