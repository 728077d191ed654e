"""What torch knows about this machine's devices, for the launcher, which imports no torch itself."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist


def count_gpus() -> int:
    return torch.cuda.device_count()


def single_device() -> torch.device:
    """The device of a command that runs without ranks: the first GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns at length that it found no GPU
    return torch.device("cpu")


def describe_gpus() -> list[dict[str, Any]]:
    """`name, memory_bytes, capability` of each GPU that is visible to this process."""
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
        for gpu in found
    ]


def cuda_version() -> str | None:
    """The CUDA that torch was built for; None for a CPU build."""
    return torch.version.cuda


def has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16 itself; torch's own answer counts a slow emulation too."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def nccl_version() -> str | None:
    """None where torch was built without NCCL."""
    return ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else None
