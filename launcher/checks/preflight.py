"""Checks of a run before its ranks start and before its folder is touched."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.checks.machine import check_disk, check_ranks, check_writable
from launcher.checks.paths import resolve_paths
from launcher.processes.torchrun import Machines
from plast_train.checkpoint.resume import require_base
from plast_train.config import Config, load_config
from plast_train.data.questions import Record, complete, read_records
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder
from plast_train.runtime.deepspeed_config import load_deepspeed_config
from plast_train.stages import STAGES, is_done, needed_by

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A run that may start: its config, which of the stages are done, and what it runs on. `base` and
    `records` are the contents of base.json and records.jsonl."""

    config: Config
    run: RunFolder
    base: dict[str, Any]
    records: str
    done: tuple[str, ...]
    todo: tuple[str, ...]
    nproc: int
    gpus: int
    machines: Machines


def preflight(
    recipe: str, overrides: Sequence[str], out: Path, nproc: int | None, stages: Sequence[str]
) -> Prepared:
    """Checks one command, quick checks first. Slow checks are skipped when there is nothing to do.

    Raises:
        UserError: anything that would stop the run later; nothing has been written then.
    """
    return preflight_config(load_config(recipe, overrides), recipe, out, nproc, stages)


def preflight_config(
    config: Config, recipe: str, out: Path, nproc: int | None, stages: Sequence[str]
) -> Prepared:
    """The same for a config that was read before; `recipe` is its name in messages."""
    run, machines = RunFolder(out), Machines.of(os.environ)
    load_deepspeed_config(config)
    config = resolve_paths(config)
    check_writable(run.path)
    for path in config.evaluate.benchmarks:
        if not Path(path).exists():
            raise UserError(f"evaluate.benchmarks: {path} does not exist; correct the path")
    records = read_records(config.data)
    _warn_of_shares(config, records)

    # These import torch, which takes seconds: the errors above are reported before.
    from launcher.checks.model import (
        BaseModel,
        check_analyses,
        check_benchmarks,
        check_validation,
        trained_parameters,
        usable_records,
    )
    from plast_train.lvlm.loading import describe_base, resolve_base
    from plast_train.runtime.devices import count_gpus

    base = describe_base(resolve_base(config.model))
    gpus = count_gpus()
    nproc = nproc or max(1, gpus)
    finished = finished_stages(config, run, base, records_text(records))
    if not finished.issuperset(stages):
        require_base(run.checkpoints, base["fingerprint"])
        check_ranks(nproc, gpus, os.cpu_count() or 1)
        model = BaseModel(config, Path(base["path"]))
        trained = trained_parameters(model.config, config.selection, config.train)
        records = usable_records(config, model, records)
        # Once more: the records of the run are those that are left, and other records make other stages.
        finished = finished_stages(config, run, base, records_text(records))
        check_validation(config, records)
        check_earlier_stages(stages, finished, recipe, out)
        if {"evaluate", "analyse"} & set(stages):
            check_benchmarks(config, model)
        if "analyse" in stages:
            check_analyses(config, model)
        check_disk(config, run, model.folder, trained, nproc, set(stages) - finished)
    done = tuple(stage for stage in stages if stage in finished)
    todo = tuple(stage for stage in stages if stage not in finished)
    return Prepared(config, run, base, records_text(records), done, todo, nproc, gpus, machines)


def _warn_of_shares(config: Config, records: Sequence[Record]) -> None:
    """Warns where balancing languages has no effect, because all have the same number of pairs."""
    languages = config.sampling.languages
    num_complete = len(complete(records, config.data.languages))
    if languages in ("temperature", "balanced") and num_complete == len(records):
        log.warning(
            "sampling.languages=%s has no effect: every record has a question in every language, so all "
            "have the same number of pairs; remove it, or give weights (sampling.language_weights)",
            languages,
        )


def records_text(records: Sequence[Record]) -> str:
    """The lines of records.jsonl."""
    return "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


def finished_stages(config: Config, run: RunFolder, base: dict[str, Any], records: str) -> set[str]:
    """The stages that are done with these settings and inputs, as are all that they need. `records` is the
    text of records.jsonl."""
    if not run.records.is_file() or run.records.read_text(encoding="utf-8") != records:
        return set()
    finished: set[str] = set()
    for stage in STAGES:
        if finished.issuperset(needed_by(stage)) and is_done(stage, config, run, base):
            finished.add(stage)
    return finished


def check_earlier_stages(stages: Sequence[str], finished: set[str], recipe: str, out: Path) -> None:
    """A stage run by itself needs the earlier ones, done with the settings given now.

    Raises:
        UserError: one is not done; the message names the command to run first.
    """
    for stage in reversed(STAGES):
        if stage in stages and stage not in finished:
            missing = [s for s in earlier_stages(stage) if s not in finished and s not in stages]
            if missing:
                raise UserError(
                    f"{stage}: {missing[0]} is not done in {out} with these settings; run first: "
                    f"plast {missing[0]} {recipe} --out {out} (and the same section.key=value)"
                )


def earlier_stages(stage: str) -> list[str]:
    """All that a stage needs, directly or not, in order."""
    wanted = set(needed_by(stage))
    for earlier in reversed(STAGES):
        if earlier in wanted:
            wanted.update(needed_by(earlier))
    return [earlier for earlier in STAGES if earlier in wanted]
