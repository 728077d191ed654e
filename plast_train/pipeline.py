"""What every rank of a run executes: the stages in order.

Started by the launcher through torchrun as `python -m plast_train.pipeline RUN STAGE …`, after it has
checked everything and has written the run folder's config.yaml, base.json and records.jsonl.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from plast_train.activations.collect import collect
from plast_train.analysis.stage import analyse
from plast_train.context import Context, context_of
from plast_train.errors import Interrupted
from plast_train.evaluation.stage import evaluate
from plast_train.report.report import report
from plast_train.run_folder import RunFolder
from plast_train.runtime.distributed import Ranks, end_ranks
from plast_train.runtime.rank import run_rank, wait_for_files
from plast_train.selection.select import select
from plast_train.stages import STAGES, inputs_of, is_done, settings_of
from plast_train.training.export import export
from plast_train.training.train import train

# Each takes the context and returns the files and folders that it made.
FUNCTIONS: dict[str, Callable[[Context], list[Path]]] = {
    "collect": collect,
    "select": select,
    "train": train,
    "export": export,
    "evaluate": evaluate,
    "analyse": analyse,
    "report": report,
}


def run_stages(context: Context, stages: Sequence[str]) -> None:
    """Runs those of the stages that are not up to date, in order, and publishes a record for each.

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
        wait_for_outputs(context.run, stage, ranks)


def run_stage(context: Context, stage: str) -> None:
    ranks, run = context.ranks, context.run
    if ranks.is_first and run.record(stage) is not None:
        ranks.say(f"{stage}: its settings or inputs changed; it is redone, and so are the stages after it")
        run.forget(stage)
    # No rank may write outputs while the old record still vouches for them.
    ranks.barrier()
    began = time.monotonic()
    outputs = FUNCTIONS[stage](context)
    # The record hashes the outputs, to which any rank may have written.
    ranks.barrier()
    if ranks.is_first:
        inputs = inputs_of(stage, context.config, run, context.base)
        assert inputs is not None, "a stage ran before the stages it needs"
        run.publish_record(stage, settings_of(stage, context.config), inputs, outputs)
        seconds = time.monotonic() - began
        run.add_stage_time(stage, seconds, ranks.world)
        ranks.say(f"{stage}: done in {seconds:.0f} s")
    ranks.barrier()  # the next stage reads this one's record


def wait_for_outputs(run: RunFolder, stage: str, ranks: Ranks) -> None:
    """Waits until every machine sees what the stage published: a shared file system may show it late."""
    record = ranks.on_first(lambda: run.record(stage))
    wait_for_files(run, record["outputs"], ranks)


def main(arguments: Sequence[str]) -> int:
    """One rank of a run: `RUN STAGE …`. Returns the exit code, as `run_rank` does."""
    run, stages = RunFolder(Path(arguments[0])), arguments[1:]
    assert set(stages) <= set(STAGES)
    return run_rank(run, lambda ranks: run_stages(context_of(run, ranks), ranks.broadcast(stages)))


if __name__ == "__main__":
    end_ranks(main(sys.argv[1:]))
