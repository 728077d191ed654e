"""`plast report`: the page of one run, or one that compares several."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.arguments import PATH, RECIPE_HELP, Command, nproc
from plast_train.errors import UserError


@click.command(
    cls=Command, epilog=f"Give a recipe and --out RUN, or the folders of two or more runs. {RECIPE_HELP}"
)
@click.argument("target", metavar="RECIPE|RUN")
@click.argument("others", metavar="[section.key=value|RUN]...", nargs=-1)
@click.option(
    "--out",
    metavar="RUN|FILE",
    type=PATH,
    help="the run's folder; of several runs the page (comparison.html)",
)
@nproc
def report(target: str, others: tuple[str, ...], out: Path | None, nproc: int | None) -> int:
    runs = [Path(target), *map(Path, others)]
    if len(runs) > 1 and all((run / "config.yaml").is_file() for run in runs):
        from plast_train.comparison.publish import write_comparison

        print(write_comparison(runs, out or Path("comparison.html")))
        return 0
    if out is None:
        raise UserError("report: give --out RUN for a recipe's stage, or the folders of two or more runs")
    from launcher.commands.run import run_stages

    return run_stages(target, others, out, nproc, ("report",))
