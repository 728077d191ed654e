"""One rank's process, from joining the others to its exit code."""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping

from plast_train.errors import Interrupted, UserError
from plast_train.run_folder import RunFolder
from plast_train.runtime.distributed import Ranks, start_ranks
from plast_train.runtime.failures import Failure, publish_failure
from plast_train.runtime.stack_location import raised_in_exchange

# NFS shows another machine's file after at most 60 s by default (`acdirmax`); twice that, because the folder
# it lies in may be new too.
SECONDS_TO_APPEAR = 120


def run_rank(run: RunFolder, work: Callable[[Ranks], None]) -> int:
    """Joins the ranks, whose logs are in the run's folder, and does the work. Returns the exit code: 0 done,
    2 an error that the user can fix, 1 otherwise."""
    ranks = None
    try:
        ranks = start_ranks(run.logs)
        work(ranks)
        return 0
    except Interrupted as interruption:
        return _failed(run, ranks, "interrupted", interruption, 1)
    except UserError as error:
        return _failed(run, ranks, "user", error, 2)
    except Exception as error:
        return _failed(run, ranks, "defect", error, 1)


def _failed(run: RunFolder, ranks: Ranks | None, kind: str, error: Exception, code: int) -> int:
    """Leaves a note for the launchers."""
    logging.error("%s", error, exc_info=error)
    if ranks is not None and ranks.watchdog.hung:
        return code  # the watchdog has left its note, and this error only follows from the hang
    message = str(error) if kind in ("user", "interrupted") else f"{type(error).__name__}: {error}"
    failure = Failure(
        rank=int(os.environ["RANK"]),
        kind=kind,
        message=message,
        stage=ranks.watchdog.stage if ranks is not None else None,
        in_exchange=kind == "defect" and raised_in_exchange(error.__traceback__),
        traceback=traceback.format_exc(),
    )
    try:
        publish_failure(run.logs, failure)
    except OSError as problem:
        logging.error("%s cannot be written (%s)", run.logs, problem)
        print(f"plast: rank {failure.rank}: {message}", file=ranks.console if ranks else None, flush=True)
    return code


def wait_for_files(run: RunFolder, contents: Mapping[str, str], ranks: Ranks) -> None:
    """Waits until this machine sees the files as rank 0 does: path below the run folder → SHA-256, or
    `folder`. One rank of each machine looks, except on rank 0's, which has written them.

    Raises:
        UserError: a file does not appear.
    """
    if os.environ["LOCAL_RANK"] == "0" and not ranks.is_first:
        deadline = time.monotonic() + SECONDS_TO_APPEAR
        while missing := [name for name, content in contents.items() if not run.is_intact(name, content)]:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{run.path / missing[0]}: {socket.gethostname()} does not see it as the first machine "
                    f"does, after {SECONDS_TO_APPEAR} s; --out must be one folder that all machines share"
                )
            ranks.alive()
            time.sleep(0.5)
    ranks.barrier()  # the other ranks of this machine do not look themselves
