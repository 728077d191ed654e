"""`plast run` and the stage commands: check, write down what was asked, start ranks, show what came out."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plast_train.config import dump_config
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder, publish_text, to_json

if TYPE_CHECKING:
    from launcher.preflight import Prepared


def run_stages(
    recipe: str, overrides: Sequence[str], out: Path, nproc: int | None, stages: Sequence[str]
) -> int:
    """Does those of the stages that are not done. Returns the exit code, 0 or 1.

    Raises:
        UserError: what the user can mend; found before ranks start, it leaves the run folder as it was.
    """
    from launcher.preflight import preflight
    from launcher.table import final_table
    from launcher.torchrun import start_ranks

    logging.basicConfig(level=logging.WARNING, format="plast: %(levelname)s: %(message)s")
    prepared = preflight(recipe, overrides, out, nproc, stages)
    run, machines = prepared.run, prepared.machines
    for stage in prepared.done:
        print(f"{stage}: done before, skipped", flush=True)
    if prepared.todo:
        with only_launcher(run) if machines.is_first else contextlib.nullcontext():
            if machines.is_first:
                write_down(prepared)
            code = start_ranks(run, prepared.todo, prepared.nproc, prepared.gpus, machines)
        if code != 0:
            return code
    if machines.is_first:
        print(final_table(run))
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


@contextlib.contextmanager
def only_launcher(run: RunFolder) -> Iterator[None]:
    """Keeps a second launcher out of the run folder while the first one's ranks write into it.

    Raises:
        UserError: another launcher is at work there.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{run.path}: another plast works there (process {file.read().strip()}); wait for its end, "
                "stop it, or give another --out"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
