"""`plast run` and the stage commands: check, write down what was asked, start ranks, show what came out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.processes import attempts
from launcher.processes.attempts import MetricsFile
from launcher.processes.lock import only_launcher
from launcher.processes.outcome import Outcome
from launcher.processes.stops import Stops
from plast_train.config import dump_config
from plast_train.errors import Interrupted, UserError
from plast_train.run_folder import RunFolder, publish_text, to_json

if TYPE_CHECKING:
    from launcher.checks.preflight import Prepared


def run_stages(
    recipe: str, overrides: Sequence[str], out: Path, nproc: int | None, stages: Sequence[str]
) -> int:
    """Does those of the stages that are not done. Returns the exit code, 0 or 1.

    Raises:
        UserError: what the user can mend; found before ranks start, it leaves the run folder as it was.
    """
    from launcher.checks.preflight import preflight
    from launcher.table import final_table

    logging.basicConfig(level=logging.WARNING, format="plast: %(levelname)s: %(message)s")
    with Stops() as stops:
        try:
            with stops.end_this():
                prepared = preflight(recipe, overrides, out, nproc, stages)
        except Interrupted as interruption:
            attempts.ask_for_restart(RunFolder(out), str(interruption))
            print(f"plast: {interruption}", file=sys.stderr)
            return 1
        for stage in prepared.done:
            print(f"{stage}: done before, skipped", flush=True)
        first = prepared.machines.is_first
        if prepared.todo:
            outcome = _attempt(prepared, stops) if first else _start_ranks(prepared)
            if outcome.kind != "done":
                return tell(outcome, prepared)
        if first:
            print(final_table(prepared.run))
        return 0


def write_down(prepared: Prepared) -> None:
    """What the ranks read: the config with every default, the base's hashes, the checked records. And with
    which versions on which hardware."""
    from launcher.environment import describe_environment

    run = prepared.run
    publish_text(run.config, dump_config(prepared.config))
    publish_text(run.base, to_json(prepared.base))
    publish_text(run.records, prepared.records)
    ranks = {"nproc": prepared.nproc, "machines": prepared.machines.count}
    publish_text(run.environment, to_json(describe_environment(prepared.gpus) | ranks))


def _start_ranks(prepared: Prepared) -> Outcome:
    from launcher.processes.torchrun import start_ranks

    return start_ranks(prepared.run, prepared.todo, prepared.nproc, prepared.gpus, prepared.machines)


def _attempt(prepared: Prepared, stops: Stops) -> Outcome:
    """The first machine's part of a launch with ranks: under the lock, on record, with what follows from the
    attempts before and for the next one."""
    run = prepared.run
    with only_launcher(run):
        went_back = attempts.go_back(run)
        if went_back:
            print(f"plast: {went_back}", flush=True)
        number = attempts.begin(run, prepared.nproc, prepared.machines.count)
        metrics = MetricsFile(run.metrics)
        try:
            with stops.end_this():
                write_down(prepared)
            outcome = _start_ranks(prepared)
        except Interrupted as interruption:
            outcome = Outcome("interrupted", str(interruption))
        except KeyboardInterrupt:
            attempts.end(run, number, "interrupted", "ended at once by a second Ctrl-C")
            raise
        except (OSError, UserError) as error:
            attempts.end(run, number, "user", str(error))
            raise
        stage = outcome.stage or _unfinished(prepared)
        step = metrics.last_step() if stage == "train" else None
        failed = outcome.kind != "done"
        attempts.end(
            run, number, outcome.kind, outcome.message, stage if failed else None, step, outcome.rank
        )
        if outcome.kind in attempts.RESTARTED and attempts.diagnosis(run) is None:
            attempts.ask_for_restart(run, f"{outcome.kind}: {outcome.message}")
    return outcome


def _unfinished(prepared: Prepared) -> str | None:
    """The stage that the ranks were at, where none of them could say so."""
    return next((stage for stage in prepared.todo if prepared.run.record(stage) is None), None)


def tell(outcome: Outcome, prepared: Prepared) -> int:
    """Says why the run ended, the first failing rank's error last. Returns the exit code.

    Raises:
        UserError: the error is one that the user can mend.
    """
    run, first = prepared.run, prepared.machines.is_first
    if outcome.kind == "user":
        raise UserError(outcome.message)
    words = [outcome.message]
    if outcome.kind == "interrupted":
        words = [outcome.message, "stopped by a signal; the same command goes on from there"]
    elif first:
        if outcome.trace:
            print(outcome.trace.rstrip(), file=sys.stderr)
        diagnosis = attempts.diagnosis(run)
        words = [*([diagnosis] if diagnosis else []), f"the logs are in {run.logs}", outcome.message]
    for line in words:
        print(f"plast: {line}", file=sys.stderr, flush=True)
    return 1
