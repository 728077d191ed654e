"""A stand-in for `plast_train.pipeline` in the tests of the launcher: ranks that do what the stage's name
says, in seconds, without a model. Run as `python -m support.ranks_launch RUN STAGE`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from plast_train.runtime.failures import Failure, publish_failure

run, stage, rank = Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]
received: list[int] = []


def note(number: int, _frame: FrameType | None) -> None:
    received.append(number)


def fail(kind: str, message: str) -> None:
    exchange = message == "connection closed by peer"
    publish_failure(run / "logs", Failure(int(rank), kind, message, in_exchange=exchange))
    sys.exit(1)


if stage == "tell":
    if rank == "0":
        print(f"rank 0 of {os.environ['WORLD_SIZE']} on the terminal", flush=True)
    (run / f"threads-{rank}").write_text(os.environ["OMP_NUM_THREADS"])
elif stage == "wait":
    # As real ranks do, only after a while: a signal before is ignored and has to come again.
    time.sleep(1)
    signal.signal(signal.SIGTERM, note)
    (run / f"pid-{rank}").write_text(str(os.getpid()))
    while not received:
        time.sleep(0.05)
    fail("interrupted", f"rank {rank} saved")
elif stage == "hang":
    (run / f"pid-{rank}").write_text(str(os.getpid()))
    time.sleep(600)
elif stage == "die":
    if rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    fail("defect", "connection closed by peer")
elif stage == "refuse":
    if rank == "1":
        fail("user", "line 3: mend it")
    time.sleep(1)
    fail("defect", "connection closed by peer")
