"""The real pipeline, with faults in its training loop. `PLAST_TEST_FAULTS` names them: `what:rank:step …`.
Run in place of `plast_train.pipeline` as `python -m support.faulty_ranks RUN STAGE …`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from plast_train import pipeline
from plast_train.runtime.distributed import end_ranks
from plast_train.training import loop
from plast_train.training.batches import Batch
from plast_train.training.state import Training


def sleep_for_ever() -> None:
    time.sleep(1e6)


def raise_an_error() -> None:
    raise ArithmeticError("the made-up fault")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stand_still() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


FAULTS: dict[str, Callable[[], None]] = {
    "sleep": sleep_for_ever,
    "raise": raise_an_error,
    "kill": be_killed,
    "stop": stand_still,
}

honest = loop._forward_backward


def faulty(training: Training, step: int, batch: Batch) -> float:
    for fault in os.environ["PLAST_TEST_FAULTS"].split():
        what, rank, at = fault.split(":")
        if (int(rank), int(at)) == (training.ranks.rank, step):
            FAULTS[what]()
    return honest(training, step, batch)


if __name__ == "__main__":
    loop._forward_backward = faulty
    end_ranks(pipeline.main(sys.argv[1:]))
