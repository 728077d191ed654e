"""What every rank runs: the stages in order.

Started by the launcher through torchrun as `python -m plast_train.pipeline RUN STAGE …`, after it has
checked everything and written the run folder's config.yaml, base.json and records.jsonl.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from plast_train.activations.collect import collect
from plast_train.analysis.report import report
from plast_train.analysis.stage import analyse
from plast_train.config import load_config
from plast_train.context import Context
from plast_train.distributed import Ranks, end_ranks, start_ranks
from plast_train.errors import Interrupted, UserError
from plast_train.evaluation.stage import evaluate
from plast_train.failures import Failure, publish_failure
from plast_train.run_folder import RunFolder, sha256_of
from plast_train.selection.select import select
from plast_train.stages import STAGES, inputs_of, is_done, settings_of
from plast_train.training.deepspeed_config import load_deepspeed_config
from plast_train.training.export import export
from plast_train.training.train import train
from plast_train.whereabouts import raised_in_exchange

# Each takes the context and returns what it made.
FUNCTIONS: dict[str, Callable[[Context], list[Path]]] = {
    "collect": collect,
    "select": select,
    "train": train,
    "export": export,
    "evaluate": evaluate,
    "analyse": analyse,
    "report": report,
}

# How long a shared file system may take to show a file on another machine (NFS: 60 s by default).
SECONDS_TO_APPEAR = 120


def run_stages(context: Context, stages: Sequence[str]) -> None:
    """Does those of the stages that are not done, in order, and publishes a record for each.

    Raises:
        Interrupted: a stop signal came; what is done stays done.
    """
    ranks = context.ranks
    for stage in stages:
        if ranks.should_stop():
            raise Interrupted(f"stopped by a signal before the stage {stage}")
        ranks.watchdog.stage = stage
        if ranks.on_first(partial(is_done, stage, context.config, context.run, context.base)):
            ranks.say(f"{stage}: done before, skipped")
        else:
            run_stage(context, stage)
        await_outputs(context.run, stage, ranks)


def run_stage(context: Context, stage: str) -> None:
    ranks, run = context.ranks, context.run
    if ranks.is_first and run.record(stage) is not None:
        ranks.say(f"{stage}: its settings or inputs changed; done anew, and so are the stages after it")
        run.forget(stage)
    ranks.barrier()
    began = time.monotonic()
    outputs = FUNCTIONS[stage](context)
    ranks.barrier()
    if ranks.is_first:
        inputs = inputs_of(stage, context.config, run, context.base)
        assert inputs is not None, "a stage ran before the stages it needs"
        run.publish_record(stage, settings_of(stage, context.config), inputs, outputs)
        seconds = time.monotonic() - began
        run.add_stage_time(stage, seconds, ranks.world)
        ranks.say(f"{stage}: done in {seconds:.0f} s")
    ranks.barrier()


def await_outputs(run: RunFolder, stage: str, ranks: Ranks) -> None:
    """Until every machine sees what the stage published: a shared file system may show it late."""
    record = ranks.on_first(lambda: run.record(stage))
    await_files(run, record["outputs"], ranks)


def await_files(run: RunFolder, contents: Mapping[str, str], ranks: Ranks) -> None:
    """Waits until this machine sees the files as rank 0 does: path below the run folder → SHA-256, or
    `folder`. One rank a machine looks, none on rank 0's.

    Raises:
        UserError: a file does not come.
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
    ranks.barrier()


def main(arguments: Sequence[str]) -> int:
    """One rank of a run: `RUN STAGE …`. Returns the exit code, as `live` does."""
    run, stages = RunFolder(Path(arguments[0])), arguments[1:]
    assert set(stages) <= set(STAGES)
    return live(run, lambda ranks: run_stages(context_of(run, ranks), ranks.broadcast(stages)))


def live(run: RunFolder, work: Callable[[Ranks], None]) -> int:
    """One rank's life: joins the ranks, whose logs are in the run's folder, and does the work. Returns the
    exit code: 0 done, 2 the user can mend it, 1 otherwise."""
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


def context_of(run: RunFolder, ranks: Ranks) -> Context:
    """What rank 0 has read: the launchers of other machines may have seen the folder later, or as it was."""
    config = ranks.on_first(lambda: load_config(str(run.config)))
    ranks.watchdog.minutes = config.watchdog_minutes
    files = ranks.on_first(lambda: {path.name: sha256_of(path) for path in (run.base, run.records)})
    await_files(run, files, ranks)
    return Context(config, run, ranks, load_deepspeed_config(config))


def _failed(run: RunFolder, ranks: Ranks | None, kind: str, error: Exception, code: int) -> int:
    """Leaves a note for the launchers."""
    logging.error("%s", error, exc_info=error)
    if ranks is not None and ranks.watchdog.hung:
        return code  # it is told already, and what follows is of no use
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


if __name__ == "__main__":
    end_ranks(main(sys.argv[1:]))
