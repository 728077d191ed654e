"""What every rank runs: the stages in order.

Started by the launcher through torchrun as `python -m plast_train.pipeline RUN STAGE …`, after it has
checked everything and written the run folder's config.yaml, base.json and records.jsonl.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from plast_train.activations.collect import collect
from plast_train.analysis.report import report
from plast_train.config import load_config
from plast_train.context import Context
from plast_train.distributed import Ranks, end_ranks, start_ranks
from plast_train.errors import Interrupted, UserError
from plast_train.evaluation.stage import evaluate
from plast_train.run_folder import RunFolder, publish_text, to_json
from plast_train.selection.select import select
from plast_train.stages import STAGES, inputs_of, is_done, settings_of
from plast_train.training.deepspeed_config import load_deepspeed_config
from plast_train.training.export import export
from plast_train.training.train import train

# Each takes the context and returns what it made.
FUNCTIONS: dict[str, Callable[[Context], list[Path]]] = {
    "collect": collect,
    "select": select,
    "train": train,
    "export": export,
    "evaluate": evaluate,
    "report": report,
}


def run_stages(context: Context, stages: Sequence[str]) -> None:
    """Does those of the stages that are not done, in order, and publishes a record for each."""
    for stage in stages:
        done = is_done(stage, context.config, context.run, context.base) if context.ranks.is_first else None
        if context.ranks.broadcast(done):
            context.ranks.say(f"{stage}: done before, skipped")
        else:
            run_stage(context, stage)


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
        ranks.say(f"{stage}: done in {time.monotonic() - began:.0f} s")
    ranks.barrier()


def main(arguments: Sequence[str]) -> int:
    """One rank's life. Returns the exit code: 0 done, 2 the user can mend it, 1 otherwise."""
    run, stages = RunFolder(Path(arguments[0])), arguments[1:]
    assert set(stages) <= set(STAGES)
    ranks = start_ranks(run.logs)
    try:
        stages = ranks.broadcast(stages)  # launchers of other machines may have seen the folder later
        config = load_config(str(run.config))
        run_stages(Context(config, run, ranks, load_deepspeed_config(config)), stages)
        return 0
    except Interrupted as interruption:
        return _failed(run, ranks, "interrupted", interruption, 1)
    except UserError as error:
        return _failed(run, ranks, "user", error, 2)
    except Exception as error:
        return _failed(run, ranks, "defect", error, 1)


def _failed(run: RunFolder, ranks: Ranks, kind: str, error: Exception, code: int) -> int:
    """Leaves a note for the launcher: exit codes of ranks are lost on their way through torchrun."""
    logging.error("%s", error, exc_info=error)
    note = {"time": time.time(), "kind": kind, "message": str(error), "traceback": traceback.format_exc()}
    publish_text(run.logs / f"failure-rank-{ranks.rank}.json", to_json(note))
    return code


if __name__ == "__main__":
    end_ranks(main(sys.argv[1:]))
