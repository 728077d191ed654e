"""What a run reports while it trains: metrics.jsonl and TensorBoard, written by rank 0."""

from __future__ import annotations

import json
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from plast_train.run_folder import publish_text
from plast_train.training.batches import Batch

# Peak dense bf16 FLOP/s by a part of the device's name, from the vendors' data sheets. The first match
# wins, so a name comes before those that it contains.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
    "A40": 1.497e14,
    "A10": 1.25e14,
    "RTX 6000 Ada": 3.64e14,
    "RTX 4090": 1.65e14,
    "RTX 3090": 7.1e13,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of one device, None where it is unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the device where it is a GPU, of this process elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Makes `peak_memory` count from now on: a process may train several models in turn. Where Linux does not
    let a process reset it, the old peak stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak resident set size


class Meters:
    """Writes one line per step. Lines after `start`, left by a run that was killed, are removed, so that no
    step appears twice."""

    def __init__(self, metrics: Path, tensorboard: Path, start: int) -> None:
        self.path = metrics
        publish_text(metrics, "".join(line for line in _lines(metrics) if json.loads(line)["step"] <= start))
        self._writer = SummaryWriter(log_dir=str(tensorboard), purge_step=start + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in _flat(values).items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def rates(
    seconds: float, batch: Batch, flops: float, device: torch.device, world: int
) -> dict[str, float | None]:
    """Speeds of a step of all ranks that took `seconds`. `flops` are the useful ones of the whole step; MFU
    is their share of the devices' peak (Chowdhery et al. 2022, PaLM, app. B)."""
    peak = peak_flops(device)
    return {
        "seconds": seconds,
        "samples_per_second": batch.step.samples / seconds,
        "tokens_per_second": batch.step.tokens / seconds,
        "useful_flops_per_second": flops / seconds,
        "mfu": flops / seconds / (peak * world) if peak else None,
        "data_wait_share": batch.waited / seconds,
        "peak_memory_bytes": peak_memory(device),
    }


def _lines(path: Path) -> list[str]:
    """The whole lines of an earlier run; a torn last line is left out."""
    if not path.exists():
        return []
    return [
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat
