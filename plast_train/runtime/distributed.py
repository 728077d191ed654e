"""Ranks: starting and ending them, exact reductions, the shared stop flag, output on the terminal."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

from plast_train.errors import Interrupted, UserError
from plast_train.runtime.progress import PROGRESS, Progress
from plast_train.runtime.watchdog import Watchdog

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_stop_requested = False


@dataclass(frozen=True)
class Ranks:
    """This process among all ranks. Every rank must call the collectives in the same order."""

    rank: int
    world: int
    device: torch.device
    console: TextIO
    logs: Path
    watchdog: Watchdog

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Rank 0's result of `action`, on every rank. A UserError or Interrupted there is raised on every
        rank, so that none is left waiting."""
        outcome: tuple[Any, UserError | Interrupted | None] = (None, None)
        if self.is_first:
            try:
                outcome = (action(), None)
            except (UserError, Interrupted) as refused:
                outcome = (None, refused)
        result, error = self.broadcast(outcome)
        if error is not None:
            raise error
        return result

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value in rank order, on every rank."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on the tensor's own device. Exact for integers."""
        summed = tensor.to(self.device, copy=True).contiguous()
        dist.all_reduce(summed)
        return summed.to(tensor.device)

    def share(self, tensor: torch.Tensor) -> None:
        """Overwrites the tensor, which must be on this rank's device, with rank 0's."""
        dist.broadcast(tensor, src=0)

    def should_stop(self) -> bool:
        """Whether any rank was signalled to stop. All ranks get the same answer at the same place, so that
        none enters a step that another leaves out. Counts as progress for the watchdog."""
        self.alive()
        flag = torch.tensor([int(_stop_requested)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def alive(self) -> None:
        """Reports progress to the watchdog. For loops whose rounds may each take minutes."""
        self.watchdog.alive()

    def say(self, text: str) -> None:
        """A line for the user, once: on rank 0's terminal and in its log."""
        if self.is_first:
            print(text, file=self.console, flush=True)
            logging.info("%s", text)

    def progress(self, label: str, total: int, unit: str, done: int = 0) -> Progress:
        """The stage's progress line, on rank 0's terminal and, for `plast status`, in the run folder."""
        if not self.is_first:
            return Progress(label, total, unit, None, done, self.watchdog)
        return Progress(label, total, unit, self.console, done, self.watchdog, self.logs / PROGRESS)


def start_ranks(logs: Path) -> Ranks:
    """Joins the process group that torchrun's environment variables describe. From here on this process's
    output goes to `logs/rank-N.log`; only `Ranks.say` and the progress line reach rank 0's terminal."""
    rank = int(os.environ["RANK"])
    console = _redirect_output(logs / f"rank-{rank}.log")
    logging.basicConfig(
        level=logging.INFO, force=True, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    faulthandler.enable()  # stacks in the log where native code crashes
    for number in STOP_SIGNALS:
        signal.signal(number, _request_stop)
    watchdog = Watchdog(logs, rank)
    watchdog.start()
    device = _device()
    _init_distributed(device)
    world = dist.get_world_size()
    watchdog.join(world, device)
    return Ranks(rank, world, device, console, logs, watchdog)


def end_ranks(code: int) -> None:
    """Exits without interpreter shutdown, which sometimes aborts after ZeRO-3."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


def _init_distributed(device: torch.device) -> None:
    import deepspeed

    # Not needed, and compiling it takes CPU ranks 28 s at each start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The others wait while rank 0 copies and hashes whole models. A rank that dies is noticed by torchrun and
    # the launchers, one that hangs by the watchdog, so this limit need not be tight.
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(hours=6)
    )


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _redirect_output(log: Path) -> TextIO:
    """Redirects this process's stdout and stderr to its log, including what native code prints; returns the
    terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    console = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return console


def stop_requested() -> bool:
    """Whether this rank was signalled to stop; for work that rank 0 does alone while the others wait."""
    return _stop_requested


def _request_stop(_number: int, _frame: Any) -> None:
    global _stop_requested
    _stop_requested = True
