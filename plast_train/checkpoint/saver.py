"""Saving behind the training loop, which is held for the copy to host memory alone."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from torch.nn import Parameter

from plast_train.checkpoint.checkpoints import Identity, Snapshot, snapshot, write
from plast_train.runtime.distributed import Ranks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Exchange:
    """The exchanges of the saving threads, in a group of their own: they never mix with the training's."""

    rank: int
    world: int
    group: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values


class Saver:
    """Writes and publishes checkpoints in one background thread a rank, one after the other. To be made and
    called by every rank in the same order. `memory` is what it copies the state into (`host_memory`).

    `last` is the checkpoint that was last published or resumed from.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        settings: dict[str, Any],
        keep: int,
        ranks: Ranks,
        memory: dict[str, torch.Tensor],
    ) -> None:
        self.folder, self.identity, self.settings, self.keep = folder, identity, settings, keep
        self.last: Path | None = None
        # As patient as the training's own group: a rank that dies is noticed by torchrun.
        group = dist.new_group(backend="gloo", timeout=timedelta(hours=6))
        self._exchange = _Exchange(ranks.rank, ranks.world, group)
        self._watchdog = ranks.watchdog
        self._memory = memory
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being published on this rank."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether the save in the background failed on this rank; `wait` raises why."""
        return self._error is not None

    def save(self, engine: DeepSpeedEngine, parameters: dict[str, Parameter], step: int) -> None:
        """Copies the state after `step` steps and returns; it is published in the background. Waits first
        for the save before, whose host memory it takes.

        Raises:
            UserError: the save before failed.
        """
        if self.busy:
            log.info("step %d waits for the checkpoint before to be published", step)
        self.wait()
        snap = snapshot(engine, parameters, step, self._memory)
        self._thread = threading.Thread(target=self._publish, args=(snap,), name="saver", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is left to publish.

        Raises:
            UserError: a rank could not write; raised on every rank.
        """
        if self._thread is not None:
            with self._watchdog.computing():
                self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Waits, then frees the memory and the group.

        Raises:
            UserError: see `wait`.
        """
        self.wait()
        self._memory.clear()
        dist.destroy_process_group(self._exchange.group)

    def _publish(self, snap: Snapshot) -> None:
        try:
            self.last = write(snap, self.folder, self.identity, self.settings, self._exchange, self.keep)
            log.info("saved %s", self.last)
        except BaseException as error:  # the loop raises it
            log.exception("the checkpoint after step %d failed", snap.step)
            self._error = error
