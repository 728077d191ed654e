"""Detects that no rank of the job makes progress any more, records where each one is, and ends them.

A rank makes progress when it calls `alive` (a step, a batch, a line of progress). Outside the loops that show
progress (loading, preparing, rank 0's work alone) computing counts too, that is using the CPU without waiting
for other ranks. Ranks count their moves in torchrun's store: those that wait for one that works are not
hung. Only when no rank has moved for `minutes` does each rank write its threads' stacks and a failure note,
and end.

Times are counted in ticks of this process, not read off a clock: a job that was frozen and then resumed
(`docker pause`, `scontrol suspend`, a laptop's lid) has not waited.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from plast_train.runtime.failures import (
    MOST_PULSE_SECONDS,
    SECONDS_FOR_HANG_NOTES,
    Failure,
    note_paths,
    publish_failure,
    stacks_path,
)
from plast_train.runtime.stack_location import stack_location

# For ranks to join, before the pipeline has read the config's own limit (by default the same).
JOIN_MINUTES = 30.0
TICK_SECONDS = 1.0
# A process that uses a smaller share of one CPU (apart from the watchdog) does not compute. Idle threads use
# less; a process that computes gets more even on a heavily overloaded machine.
LEAST_CPU_SHARE = 0.003
# How long a hung rank waits for the others' notes, and for a run folder that may itself be what hangs. Longer
# than the launchers wait before they write the notes of silent ranks: when this rank ends, the others'
# exchanges break, and those errors would hide the hang.
SECONDS_FOR_NOTES = SECONDS_FOR_HANG_NOTES + 7

log = logging.getLogger(__name__)


class Watchdog:
    """One rank's watch over the job. The pipeline sets `minutes` and `stage` as it proceeds."""

    def __init__(self, logs: Path, rank: int) -> None:
        self.minutes = JOIN_MINUTES
        self.stage: str | None = None
        self.hung = False
        self._logs, self._rank, self._world = logs, rank, 1
        self._device: torch.device | None = None
        self._moves = self._moves_of_others = self._loops = 0
        self._pulse_cpu = 0.0

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def join(self, world: int, device: torch.device) -> None:
        """From here on ranks see each other's moves. To be called once they have joined."""
        self._world, self._device = world, device
        threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def alive(self) -> None:
        """This rank makes progress."""
        self._moves += 1

    def enter_loop(self) -> None:
        """From here on only `alive` counts, until `leave_loop`."""
        self._loops += 1

    def leave_loop(self) -> None:
        self._loops -= 1

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Here computing counts as progress even inside a loop: for a long wait on a thread of this rank."""
        loops, self._loops = self._loops, 0
        try:
            yield
        finally:
            self._loops = loops

    def _watch(self) -> None:
        idle, seen = 0.0, (0, 0)
        at, used = time.monotonic(), self._cpu_used()
        while idle < 60 * self.minutes:
            # Should native code hold the interpreter, a thread that needs none writes the stacks to the log.
            faulthandler.dump_traceback_later(60 * self.minutes + SECONDS_FOR_NOTES)
            time.sleep(TICK_SECONDS)
            # In a tick that took longer the process was stopped or the machine asleep, which is not a hang.
            passed = min(time.monotonic() - at, 2 * TICK_SECONDS)
            computed = self._cpu_used() - used
            at, used = time.monotonic(), self._cpu_used()
            if not self._loops and computed > LEAST_CPU_SHARE * passed and not self._where()[0]:
                self.alive()
            moves = (self._moves, self._moves_of_others)
            idle, seen = (idle + passed if moves == seen else 0.0), moves
        self._end()

    def _cpu_used(self) -> float:
        """CPU seconds of this process without the watchdog's threads. To be called in `_watch`'s thread."""
        return time.process_time() - time.thread_time() - self._pulse_cpu

    def _pulse(self) -> None:
        """Adds this rank's moves to a sum over all ranks, which shows whether another one has moved."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            # A separate connection: the process group's is busy while a rank waits for another.
            store = dist.TCPStore(
                address, port, is_master=False, wait_for_workers=False, timeout=timedelta(minutes=5)
            )
            sent = total = 0
            while True:
                mine = self._moves
                now = store.add("plast/moves", mine - sent)
                self._moves_of_others += (now - total) - (mine - sent)
                sent, total = mine, now
                self._pulse_cpu = time.thread_time()
                time.sleep(min(MOST_PULSE_SECONDS, 12 * self.minutes))
        except RuntimeError as error:
            # The first machine's torchrun has ended or is lost; each rank now watches itself alone.
            log.warning("watchdog: cannot see the progress of other ranks any more (%s)", error)

    def _where(self) -> tuple[bool, str]:
        return stack_location(sys._current_frames()[threading.main_thread().ident or 0])

    def _end(self) -> None:
        self.hung = True
        writer = threading.Thread(target=self._write_note, name="watchdog note", daemon=True)
        writer.start()
        writer.join(SECONDS_FOR_NOTES)
        deadline = time.monotonic() + SECONDS_FOR_NOTES
        while len(note_paths(self._logs)) < self._world and time.monotonic() < deadline:
            time.sleep(0.2)
        os._exit(1)

    def _write_note(self) -> None:
        waits, where = self._where()
        path = stacks_path(self._logs, self._rank)
        with path.open("w", encoding="utf-8") as file:
            file.write(
                f"rank {self._rank} of {self._world}, process {os.getpid()} on {socket.gethostname()}: "
                f"no rank made progress for {self.minutes:g} minutes; the main thread was at {where}\n\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            os.fsync(file.fileno())
        message = f"no rank made progress for {self.minutes:g} minutes"
        waits = waits or self._device_works()
        publish_failure(self._logs, Failure(self._rank, "hang", message, self.stage, waits, where))

    def _device_works(self) -> bool:
        """Whether the GPU still has work: exchanges run there, and the program may wait for their results
        at any place."""
        if self._device is None or self._device.type != "cuda":
            return False
        return not torch.cuda.default_stream(self._device).query()
