"""`plast ablate`: the recipe's selection against others, in two launches of ranks and one table.

The first launch runs the recipe's own selection with each seed, which tells how many layers the others get;
the second runs the rest. Each run has an ordinary run folder below `OUT/runs`; the same command goes on where
it was.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.commands.run import tell, write_down
from launcher.processes.lock import only_launcher
from launcher.processes.stops import Stops
from plast_train.comparison.variants import (
    STAGES,
    Entry,
    first_entries,
    other_variants,
    plan_entries,
    run_name,
    selected_layers,
    selected_variant,
    variant_config,
    wanted,
)
from plast_train.config import Config, load_config, with_values
from plast_train.errors import Interrupted, UserError
from plast_train.run_folder import RunFolder, link_or_copy

if TYPE_CHECKING:
    from launcher.checks.preflight import Prepared

# What a rank runs, as `python -m`.
RANKS = "plast_train.ablation"


def run_ablation(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    nproc: int | None,
    seeds: int | None,
    names: Sequence[str],
) -> int:
    """Does those runs that are not done, then writes and prints the comparison. Returns the exit code.

    Raises:
        UserError: what the user can mend.
    """
    from launcher.checks.preflight import preflight_config
    from plast_train.comparison.publish import publish_ablation

    logging.basicConfig(level=logging.WARNING, format="plast: %(levelname)s: %(message)s")
    config = _asked(recipe, overrides, seeds, names)
    _check_variants(config)
    own = selected_variant(config)
    with Stops() as stops:
        try:
            with stops.end_this():
                first = first_entries(config, own, _seeds(config))
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


def _asked(recipe: str, overrides: Sequence[str], seeds: int | None, names: Sequence[str]) -> Config:
    """The recipe as the ablation runs it: with the values of `ablate.every`, but for those that the command
    line gives."""
    config, given = load_config(recipe, overrides), {override.partition("=")[0] for override in overrides}
    every = {key: value for key, value in config.ablate.every.items() if key not in given}
    config = with_values(config, every, "ablate.every")
    own = {"ablate.seeds": seeds, "ablate.variants": list(names) or None}
    return with_values(config, {k: v for k, v in own.items() if v is not None}, "plast ablate")


def _seeds(config: Config) -> range:
    return range(config.seed, config.seed + config.ablate.seeds)


def _check_variants(config: Config) -> None:
    """Raises UserError for a variant that cannot be, before anything is trained."""
    own = selected_variant(config)
    variants = other_variants(config, 1, images=True, uneven=True)
    wanted(variants, list(config.ablate.only), [own.name])
    for variant in wanted(variants, config.ablate.variants, [own.name]):
        variant_config(config, variant, config.seed)


def _all_entries(config: Config, first: Sequence[Entry], prepared: Prepared) -> list[Entry]:
    """What is to be run and compared, now that the recipe's selection is known."""
    runs = prepared.run.path / "runs"
    known = [replace(entry, layers=selected_layers(RunFolder(runs / str(entry.run)))) for entry in first]
    records = [json.loads(line) for line in prepared.records.split("\n") if line]
    images = any(record["image"] for record in records)
    pairs = Counter(language for record in records for language in record["questions"] if language != "en")
    return plan_entries(config, known, runs, images, uneven=len(set(pairs.values())) > 1)


def _launch(entries: Sequence[Entry], prepared: Prepared, stops: Stops) -> int:
    """Runs what is not done of the entries in one launch of ranks, under the lock of each run: they are
    ordinary ones, that `plast run` may be given too. Returns the exit code."""
    from launcher.processes.torchrun import start_ranks

    with stops.end_this():
        todo = [run for run in _runs(entries, prepared) if run.todo]
        _check_room(todo, prepared)
    if not todo:
        return 0
    names = [run.run.path.name for run in todo]
    with ExitStack() as locks:
        # At once: whether a lost machine's launcher lives takes 15 s to see, for each run.
        with ThreadPoolExecutor(len(todo)) as threads:
            list(threads.map(locks.enter_context, [only_launcher(run.run) for run in todo]))
        with stops.end_this():
            for run in todo:
                write_down(run)
                if run is not todo[0]:
                    link_or_copy(todo[0].run.records, run.run.records)
        outcome = start_ranks(prepared.run, names, prepared.nproc, prepared.gpus, prepared.machines, RANKS)
    return 0 if outcome.kind == "done" else tell(outcome, prepared)


def _runs(entries: Sequence[Entry], prepared: Prepared) -> list[Prepared]:
    """One for each run, of what the first one's preparation has found out and checked."""
    from launcher.checks.paths import resolve_paths
    from launcher.checks.preflight import finished_stages
    from plast_train.runtime.deepspeed_config import load_deepspeed_config

    made = []
    for entry in entries:
        if entry.run != run_name(entry.variant, entry.seed):
            continue  # another's run, or none
        load_deepspeed_config(entry.config)
        config, run = resolve_paths(entry.config), RunFolder(prepared.run.path / "runs" / entry.run)
        done = finished_stages(config, run, prepared.base, prepared.records)
        todo = tuple(stage for stage in STAGES if stage not in done)
        made.append(replace(prepared, config=config, run=run, done=tuple(done), todo=todo))
    return made


def _check_room(runs: Sequence[Prepared], prepared: Prepared) -> None:
    """Every run keeps its checkpoints and its export.

    Raises:
        UserError: the disk has no room for all of them.
    """
    from launcher.checks.machine import require_room, run_bytes
    from plast_train.lvlm.architectures import count_parameters, read_architecture
    from plast_train.neurons.strategies import fixed_layers, usual_number

    base, needed = Path(prepared.base["path"]), 0
    architecture = read_architecture(base, "")
    count = architecture["text_config"]["num_hidden_layers"]
    for one in runs:
        selection = one.config.selection
        layers = fixed_layers(selection, count) or list(range(selection.k or usual_number(count)))
        trained = count_parameters(architecture, layers, selection.modules, one.config.train)[1]
        needed += run_bytes(one.config, one.run, base, trained, one.nproc, one.todo)[0]
    require_room(prepared.run.path, needed, f"{len(runs)} runs need about {needed / 1e9:.3g} GB")
