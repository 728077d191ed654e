"""`plast doctor`: what on this machine, or between several, would stop a run."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.arguments import PATH, Command
from plast_train.errors import UserError


@click.command(cls=Command)
@click.option(
    "--distributed",
    is_flag=True,
    help="check all machines together: start it on each of them at once, with NNODES, NODE_RANK, "
    "MASTER_ADDR and MASTER_PORT set",
)
@click.option("--out", metavar="RUN", type=PATH, help="with --distributed: the run's folder (.)")
@click.option(
    "--nproc", metavar="N", type=click.IntRange(min=1), help="with --distributed: ranks on this machine"
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.IntRange(min=1),
    help="with --distributed: how long to wait for a late machine (40)",
)
def doctor(distributed: bool, out: Path | None, nproc: int | None, wait: int | None) -> int:
    if distributed:
        from launcher.doctor.machines import run_distributed_doctor

        return run_distributed_doctor(out or Path(), nproc, wait or 40)
    for name, value in (("out", out), ("nproc", nproc), ("wait", wait)):
        if value is not None:
            raise UserError(f"--{name} needs --distributed: plast doctor alone checks this machine only")
    from launcher.doctor.machine import run_doctor

    return run_doctor()
