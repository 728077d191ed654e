"""What each rank does in the training tests: the training stage on each of the run folders named."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from plast_train.checkpoint.save import host_memory, snapshot
from plast_train.config import load_config
from plast_train.context import Context
from plast_train.errors import Diverged, Interrupted, UserError
from plast_train.run_folder import RunFolder
from plast_train.runtime import late_files
from plast_train.runtime.deepspeed_config import load_deepspeed_config
from plast_train.runtime.distributed import end_ranks, start_ranks
from plast_train.training import loop
from plast_train.training.state import Training
from plast_train.training.train import train


@contextmanager
def infinite_gradient(run: Path) -> Iterator[None]:
    """Makes rank 1's gradient infinite, and leaves its loss, at the step that `infinite_gradient.txt` names.
    What each rank holds after that is saved."""
    wanted = int((run / "infinite_gradient.txt").read_text())
    forward_backward, losses, finite_norm = loop._forward_backward, loop.token_losses, loop._finite_norm

    def infinite(*arguments: Any) -> torch.Tensor:
        found = losses(*arguments)
        found.register_hook(lambda gradient: gradient * math.inf)
        return found

    def watched(training: Training, step: int, batch: Any) -> float:
        broken = step == wanted and training.ranks.rank == 1
        with patch.object(loop, "token_losses", infinite if broken else losses):
            return forward_backward(training, step, batch)

    def saving(training: Training, step: int) -> float:
        try:
            return finite_norm(training, step)
        except Diverged:
            engine, trained = training.engine, training.trained
            held = snapshot(engine, trained, wanted - 1, host_memory(engine, trained))
            save_file(held.tensors, run / f"held-{training.ranks.rank}.safetensors")
            raise

    with patch.object(loop, "_forward_backward", watched), patch.object(loop, "_finite_norm", saving):
        yield


@contextmanager
def without_world() -> Iterator[None]:
    """Weighs the loss as if there were one rank."""
    forward_backward = loop._forward_backward

    def wrong(training: Training, step: int, batch: Any) -> float:
        return forward_backward(replace(training, ranks=replace(training.ranks, world=1)), step, batch)

    with patch.object(loop, "_forward_backward", wrong):
        yield


def main(runs: list[str]) -> int:
    late_files.SECONDS_TO_SEE = 0.5  # what is missing here does not come late
    ranks = start_ranks(Path(runs[0]) / "logs")
    for run in map(Path, runs):
        config = load_config(str(run / "config.yaml"))
        broken = infinite_gradient(run) if (run / "infinite_gradient.txt").exists() else nullcontext()
        if (run / "without_world.txt").exists():
            broken = without_world()
        try:
            with broken:
                train(Context(config, RunFolder(run), ranks, load_deepspeed_config(config)))
        except (UserError, Interrupted) as error:
            if ranks.is_first:
                (run / f"{type(error).__name__}.txt").write_text(str(error), encoding="utf-8")
    ranks.barrier()
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        code = 1
    end_ranks(code)
