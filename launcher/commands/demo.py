"""`plast demo`: every stage with the embedded tiny model."""

from __future__ import annotations

import os
from pathlib import Path

import click

from launcher.arguments import PATH, Command
from plast_train.run_folder import STAGES


@click.command(cls=Command)
@click.option(
    "--out", metavar="RUN", type=PATH, default=Path("runs/demo"), help="the run's folder (runs/demo)"
)
def demo(out: Path) -> int:
    from launcher.commands.run import run_stages

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same figures on every machine
    return run_stages("tiny", [], out, min(2, os.cpu_count() or 1), STAGES)
