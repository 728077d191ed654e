"""`plast ablate`: the recipe's selection against others, in two launches of ranks and one table.

The first launch runs the recipe's own selection with each seed, which determines how many layers the other
variants get; the second runs the rest. Each run has an ordinary run folder below `OUT/runs`; the same command
again resumes where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.arguments import RECIPE_HELP, Command, nproc, out, recipe
from launcher.commands.run import report_failure, write_down
from launcher.processes import torchrun
from launcher.processes.lock import only_launcher
from launcher.processes.stops import Stops
from plast_train.errors import Interrupted, UserError
from plast_train.run_folder import RunFolder, link_or_copy

if TYPE_CHECKING:
    from launcher.checks.preflight import Prepared
    from plast_train.comparison.variants import Entry
    from plast_train.config import Config

# What a rank runs, as `python -m`.
RANKS = "plast_train.ablation"


@click.command(cls=Command, epilog=RECIPE_HELP)
@recipe
@out
@nproc
@click.option(
    "--seeds",
    metavar="N",
    type=click.IntRange(min=1),
    help="train each variant this many times (default: ablate.seeds, 3)",
)
@click.option(
    "--variants", metavar="NAME,...", default="", help="only these beside the recipe's own selection"
)
def ablate(
    recipe: str, overrides: tuple[str, ...], out: Path, nproc: int | None, seeds: int | None, variants: str
) -> int:
    names = [name for name in variants.split(",") if name]
    return run_ablation(recipe, overrides, out, nproc, seeds, names)


def run_ablation(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    nproc: int | None,
    seeds: int | None,
    names: Sequence[str],
) -> int:
    """Performs the runs that are not done, then writes and prints the comparison. Returns the exit code.

    Raises:
        UserError: what the user can fix.
    """
    from launcher.checks.preflight import preflight_config
    from plast_train.comparison.publish import publish_ablation
    from plast_train.comparison.variants import STAGES, first_entries, selected_variant

    config = _ablation_config(recipe, overrides, seeds, names)
    _check_variants(config)
    seed_range = range(config.seed, config.seed + config.ablate.seeds)
    with Stops() as stops:
        try:
            with stops.end_this():
                first = first_entries(config, selected_variant(config), seed_range)
                run = out / "runs" / str(first[0].run)
                prepared = preflight_config(first[0].config, recipe, run, nproc, STAGES)
            if prepared.machines.count > 1:
                raise UserError("plast ablate runs on one machine; start it without NNODES")
            prepared = replace(prepared, run=RunFolder(out))
            with only_launcher(prepared.run):
                code = _launch(first, prepared, stops)
                if code == 0:
                    entries = _all_entries(config, first, prepared)
                    code = _launch(entries[len(first) :], prepared, stops)
        except Interrupted as interruption:
            print(f"plast: {interruption}", file=sys.stderr)
            return 1
    if code == 0:
        print(publish_ablation(entries, out))
    return code


def _ablation_config(
    recipe: str, overrides: Sequence[str], seeds: int | None, names: Sequence[str]
) -> Config:
    """The recipe as the ablation runs it: with the values of `ablate.every`, except those that the command
    line sets."""
    from plast_train.config import load_config, with_values

    config, given = load_config(recipe, overrides), {override.partition("=")[0] for override in overrides}
    every = {key: value for key, value in config.ablate.every.items() if key not in given}
    config = with_values(config, every, "ablate.every")
    own = {"ablate.seeds": seeds, "ablate.variants": list(names) or None}
    return with_values(config, {k: v for k, v in own.items() if v is not None}, "plast ablate")


def _check_variants(config: Config) -> None:
    """Raises UserError for an impossible variant, before anything is trained."""
    from plast_train.comparison.variants import other_variants, selected_variant, variant_config, wanted

    own = selected_variant(config)
    variants = other_variants(config, 1, images=True, uneven=True)
    wanted(variants, list(config.ablate.only), [own.name])
    for variant in wanted(variants, config.ablate.variants, [own.name]):
        variant_config(config, variant, config.seed)


def _all_entries(config: Config, first: Sequence[Entry], prepared: Prepared) -> list[Entry]:
    """All runs to perform and compare, now that the recipe's selection is known."""
    from plast_train.comparison.variants import plan_entries, selected_layers

    runs = prepared.run.path / "runs"
    known = [replace(entry, layers=selected_layers(RunFolder(runs / str(entry.run)))) for entry in first]
    records = [json.loads(line) for line in prepared.records.split("\n") if line]
    images = any(record["image"] for record in records)
    pairs = Counter(language for record in records for language in record["questions"] if language != "en")
    return plan_entries(config, known, runs, images, uneven=len(set(pairs.values())) > 1)


def _launch(entries: Sequence[Entry], prepared: Prepared, stops: Stops) -> int:
    """Performs the entries that are not done in one launch of ranks, under the lock of each run, because
    they are ordinary run folders that `plast run` takes too. Returns the exit code."""

    with stops.end_this():
        todo = [run for run in _runs(entries, prepared) if run.todo]
        _check_room(todo, prepared)
    if not todo:
        return 0
    names = [run.run.path.name for run in todo]
    with ExitStack() as locks:
        # In threads: finding out whether a lost machine's launcher still lives takes 15 s for each lock.
        with ThreadPoolExecutor(len(todo)) as threads:
            list(threads.map(locks.enter_context, [only_launcher(run.run) for run in todo]))
        with stops.end_this():
            for run in todo:
                write_down(run)
                if run is not todo[0]:  # all have the same records: one file, not one a run
                    link_or_copy(todo[0].run.records, run.run.records)
        outcome = torchrun.start_ranks(
            prepared.run, names, prepared.nproc, prepared.gpus, prepared.machines, RANKS
        )
    return 0 if outcome.kind == "done" else report_failure(outcome, prepared.run, is_first=True)


def _runs(entries: Sequence[Entry], prepared: Prepared) -> list[Prepared]:
    """One for each run of the entries, from what was found out and checked for the first one."""
    from launcher.checks.paths import resolve_paths
    from launcher.checks.preflight import finished_stages
    from plast_train.comparison.variants import STAGES, run_name
    from plast_train.runtime.deepspeed_config import load_deepspeed_config

    made = []
    for entry in entries:
        if entry.run != run_name(entry.variant, entry.seed):
            continue  # the run of another entry, or none
        load_deepspeed_config(entry.config)
        config, run = resolve_paths(entry.config), RunFolder(prepared.run.path / "runs" / entry.run)
        done = finished_stages(config, run, prepared.base, prepared.records)
        todo = tuple(stage for stage in STAGES if stage not in done)
        made.append(replace(prepared, config=config, run=run, done=tuple(done), todo=todo))
    return made


def _check_room(runs: Sequence[Prepared], prepared: Prepared) -> None:
    """Raises UserError if the disk has no room for the checkpoints and exports of all runs together."""
    from launcher.checks.machine import require_room, run_bytes
    from launcher.checks.model import trained_parameters
    from plast_train.lvlm.architectures import read_architecture

    base, needed = Path(prepared.base["path"]), 0
    architecture = read_architecture(base, "")
    for one in runs:
        trained = trained_parameters(architecture, one.config.selection, one.config.train)
        needed += run_bytes(one.config, one.run, base, trained, one.nproc, one.todo)[0]
    require_room(prepared.run.path, needed, f"{len(runs)} runs need about {needed / 1e9:.3g} GB")
