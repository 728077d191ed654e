"""Which GPUs this process sees. The launcher asks here, so that it needs no torch of its own."""

from __future__ import annotations

import os

import torch


def count_gpus() -> int:
    return torch.cuda.device_count()


def single_device() -> torch.device:
    """The device of a command that runs without ranks: the first GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns at length that it found no GPU
    return torch.device("cpu")
