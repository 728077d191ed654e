"""How long saving a checkpoint holds the training loop: published behind it, and with the loop waiting.

    python benchmarks/checkpoint_pause.py [--gigabytes 1.2] [--nproc 2] [--saves 5] [--folder DIR]

Ranks under ZeRO-2 train linear layers whose checkpoint takes that many gigabytes a rank and save into DIR,
in turn in the one way and the other, in one run. Prints how long each held the loop (the slowest rank,
median over the saves), and what the steps took meanwhile.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from plast_train.checkpoint.format import BYTES_PER_PARAMETER, Identity
from plast_train.checkpoint.save import Saver, host_memory
from plast_train.config import Config
from plast_train.runtime.distributed import Ranks, end_ranks, start_ranks
from plast_train.training.engine import build_engine

WIDTH = 2048
RANK = "a rank"  # the first argument of the ranks' own command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.2)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    asked = parser.parse_args()
    layers = round(asked.gigabytes * 1e9 * asked.nproc / BYTES_PER_PARAMETER / WIDTH**2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="checkpoint-pause-") as folder:
        rank = [__file__, RANK, folder, str(layers), str(asked.saves)]
        subprocess.run(
            [*torchrun, f"--nproc-per-node={asked.nproc}", *rank],
            env={"OMP_NUM_THREADS": "1", **os.environ},
            check=True,
        )


class Loop:
    """A training loop of one rank."""

    def __init__(self, ranks: Ranks, folder: Path, layers: int) -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self.ranks, self.step = ranks, 0
        self.parameters = dict(model.named_parameters())
        self.engine: DeepSpeedEngine = build_engine(
            model.to(ranks.device), self.parameters, config(), ranks.world, 1
        )
        shapes = {name: list(parameter.shape) for name, parameter in self.parameters.items()}
        identity = Identity("benchmark", [], "all", shapes, {})
        memory = host_memory(self.engine, self.parameters)
        self.saver = Saver(folder / "checkpoints", identity, 1, ranks, memory)

    def train(self) -> float:
        """One step; returns its seconds."""
        began = time.perf_counter()
        inputs = torch.randn(4, WIDTH, device=self.ranks.device)
        self.engine.backward(self.engine(inputs).square().mean())
        self.engine.step()
        self.step += 1
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def save(self, wait: bool) -> float:
        """The seconds that the loop is held, the longest of all ranks."""
        self.ranks.barrier()
        began = time.perf_counter()
        self.saver.save(self.engine, self.parameters, self.step)
        if wait:
            self.saver.wait()
        return float(max(self.ranks.gather(time.perf_counter() - began)))

    def train_until_published(self) -> list[float]:
        seconds = []
        while any(self.ranks.gather(self.saver.busy)):
            seconds.append(self.train())
        return seconds


def config() -> Config:
    return Config.model_validate(
        {
            "model": {"path": "none", "dtype": "float32"},
            "data": {"questions": ["none"], "languages": ["en", "de"]},
            "train": {"deepspeed": "zero2"},
        }
    )


def rank_main(folder: Path, layers: int, saves: int) -> None:
    ranks = start_ranks(folder / "logs")
    loop = Loop(ranks, folder, layers)
    loop.train()
    first = loop.save(wait=False)
    loop.train_until_published()
    usual = median([loop.train() for _ in range(5)])
    waited, held, meanwhile = [], [], []
    for _ in range(saves):
        waited.append(loop.save(wait=True))
        loop.train()
        held.append(loop.save(wait=False))
        meanwhile += loop.train_until_published()
    loop.saver.wait()
    assert loop.saver.last is not None
    size = sum(file.stat().st_size for file in loop.saver.last.iterdir()) / ranks.world / 1e9
    ranks.say(f"torch {torch.__version__}, {platform.machine()}, {ranks.device.type}, {ranks.world} ranks")
    ranks.say(f"checkpoint of {size:.2f} GB a rank; {saves} saves each way; seconds, median (least to most)")
    ranks.say(f"the loop waits     {spread(waited)}")
    ranks.say(f"behind the loop    {spread(held)}; the first {first:.3f}")
    ranks.say(f"of the former      {median(held) / median(waited):.1%}")
    ranks.say(f"a step takes {usual:.3f} s, while a checkpoint is published {spread(meanwhile)}")
    loop.saver.close()
    ranks.barrier()


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


if __name__ == "__main__":
    if sys.argv[1:2] == [RANK]:
        rank_main(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        end_ranks(0)
    else:
        main()
