"""`plast run` and the single stages: check, write what the ranks read, start them, show the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.arguments import RECIPE_HELP, Command, nproc, out, recipe
from launcher.processes import attempts, torchrun
from launcher.processes.attempts import MetricsFile
from launcher.processes.lock import only_launcher
from launcher.processes.outcome import Outcome
from launcher.processes.stops import Stops
from plast_train.errors import Interrupted, UserError
from plast_train.run_folder import STAGES, RunFolder, publish_text, to_json

if TYPE_CHECKING:
    from launcher.checks.preflight import Prepared


def stages_command(name: str, stages: tuple[str, ...]) -> click.Command:
    @click.command(name, cls=Command, epilog=RECIPE_HELP)
    @recipe
    @out
    @nproc
    def command(recipe: str, overrides: tuple[str, ...], out: Path, nproc: int | None) -> int:
        return run_stages(recipe, overrides, out, nproc, stages)

    return command


run = stages_command("run", STAGES)
# `evaluate` and `report` take more than a recipe and have modules of their own.
collect, select, train, export, analyse = (
    stages_command(stage, (stage,)) for stage in ("collect", "select", "train", "export", "analyse")
)


def run_stages(
    recipe: str, overrides: Sequence[str], out: Path, nproc: int | None, stages: Sequence[str]
) -> int:
    """Runs those of the stages that are not done. Returns the exit code, 0 or 1.

    Raises:
        UserError: what the user can fix; found before ranks start, it leaves the run folder as it was.
    """
    from launcher.checks.preflight import preflight
    from launcher.table import final_table

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
            # The lock and the files of attempts are the first machine's; the others only run ranks.
            outcome = _attempt(prepared, stops) if first else _start_ranks(prepared)
            if outcome.kind != "done":
                return report_failure(outcome, prepared.run, first)
        if first:
            print(final_table(prepared.run))
        return 0


def write_down(prepared: Prepared) -> None:
    """What the ranks read: the config with every default, the base's hashes, the checked records. And with
    which versions on which hardware."""
    from launcher.environment import describe_environment
    from plast_train.config import dump_config

    run = prepared.run
    publish_text(run.config, dump_config(prepared.config))
    publish_text(run.base, to_json(prepared.base))
    publish_text(run.records, prepared.records)
    ranks = {"nproc": prepared.nproc, "machines": prepared.machines.count}
    publish_text(run.environment, to_json(describe_environment(prepared.gpus) | ranks))


def _start_ranks(prepared: Prepared) -> Outcome:
    return torchrun.start_ranks(prepared.run, prepared.todo, prepared.nproc, prepared.gpus, prepared.machines)


def _attempt(prepared: Prepared, stops: Stops) -> Outcome:
    """The first machine's part of a launch: takes the lock, records the attempt and its end, and decides by
    the attempts before it whether to go back a checkpoint and whether to ask for a restart."""
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
        # Where no rank could name its stage, it was the first that has no record.
        unfinished = (stage for stage in prepared.todo if run.record(stage) is None)
        stage = outcome.stage or next(unfinished, None)
        step = metrics.last_step() if stage == "train" else None
        failed = outcome.kind != "done"
        attempts.end(
            run, number, outcome.kind, outcome.message, stage if failed else None, step, outcome.rank
        )
        # A diagnosis means that the same failure came three times: another start would only repeat it.
        if outcome.kind in attempts.RESTARTED and attempts.diagnosis(run) is None:
            attempts.ask_for_restart(run, f"{outcome.kind}: {outcome.message}")
    return outcome


def report_failure(outcome: Outcome, run: RunFolder, is_first: bool) -> int:
    """Says on stderr why the ranks ended, the first failing rank's error last. Returns the exit code, 1.

    Raises:
        UserError: the error is one that the user can fix.
    """
    if outcome.kind == "user":
        raise UserError(outcome.message)
    lines = [outcome.message]
    if outcome.kind == "interrupted":
        lines.append("stopped by a signal; the same command resumes from there")
    elif is_first:  # one machine's terminal is enough for the trace, which came from any machine
        if outcome.trace:
            print(outcome.trace.rstrip(), file=sys.stderr)
        diagnosis = attempts.diagnosis(run)
        lines = [*([diagnosis] if diagnosis else []), f"the logs are in {run.logs}", outcome.message]
    for line in lines:
        print(f"plast: {line}", file=sys.stderr, flush=True)
    return 1
