"""`plast compare RUN …`: several evaluated runs in one table."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.arguments import PATH, Command


@click.command(cls=Command, epilog="RUN: the folders of evaluated runs.")
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@click.option(
    "--out",
    metavar="DIR",
    type=PATH,
    help="also write the tables (CSV, LaTeX) and the figure (PNG, SVG) into this folder",
)
def compare(runs: tuple[Path, ...], out: Path | None) -> int:
    from plast_train.comparison.publish import compare_runs

    print(compare_runs(runs, out))
    return 0
