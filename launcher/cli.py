"""The `plast` command line: every command with its arguments, and the function in `commands/` that does it.

Imports nothing heavy, so that help and refusals come at once. Shell completion comes with click:
`eval "$(_PLAST_COMPLETE=bash_source plast)"` in bash; zsh and fish likewise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from plast_train.errors import UserError, nearest

STAGES = ("collect", "select", "train", "export", "evaluate", "analyse", "report")


class Command(click.Command):
    """A command whose `greedy` options take every value up to the next option: `--layer 3 4`, which click
    itself reads only as `--layer 3 --layer 4`."""

    def __init__(self, *arguments: Any, greedy: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.greedy = greedy

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = None
        for argument in args:
            if argument.startswith("-"):
                option = argument if argument in self.greedy else None
                spread += [] if option else [argument]
            else:
                spread += [option, argument] if option else [argument]
        return super().parse_args(ctx, spread)


class Commands(click.Group):
    """Answers an unknown command with the nearest one."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of a user's work, not of the alphabet

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            hint = nearest(args[0], self.commands)
            raise UserError(f"unknown command '{args[0]}'{hint} (see plast --help)")
        return super().resolve_command(ctx, args)


def plast() -> NoReturn:
    """The command itself. Ends at once: where torch is imported Python's own end takes seconds on a busy
    machine, and whatever restarts a failed run waits for them too."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 when done, 2 for what the user can fix, 1 otherwise."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return (
            int(commands.main(given or ["--help"], "plast", standalone_mode=False) or 0) if given else _help()
        )
    except UserError as error:
        message = str(error)
    except click.NoSuchOption as error:
        options = [option for p in error.ctx.command.params for option in p.opts] if error.ctx else []
        message = f"unknown option {error.option_name}{nearest(error.option_name, options)}{_usage(error)}"
    except click.UsageError as error:
        message = f"{error.format_message()}{_usage(error)}"
    except (click.Abort, KeyboardInterrupt):
        print("plast: stopped", file=sys.stderr)
        return 1
    print(f"plast: {message}", file=sys.stderr)
    return 2


def _help() -> int:
    commands.main(["--help"], "plast", standalone_mode=False)
    return 2


def _usage(error: click.UsageError) -> str:
    return f"\n{error.ctx.get_usage()}" if error.ctx else ""


@click.group(
    cls=Commands,
    epilog="plast COMMAND --help explains one. Exit codes: 0 done, 2 you can fix it, 1 otherwise.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="plast", message="plast %(version)s")
def commands() -> None:
    """Finds the layers of a vision-language model where languages diverge and trains only those."""


def _complete_recipe(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from plast_train.config import recipes

    return [name for name in recipes() if name.startswith(start)]


def _complete_override(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from plast_train.config import options

    return [f"{name}=" for name, _ in options() if name.startswith(start)]


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
COUNT = click.IntRange(min=1)


def path_option(name: str, metavar: str, help: str, **more: Any) -> Decorator:
    return click.option(name, metavar=metavar, type=click.Path(path_type=Path), help=help, **more)


recipe_argument = click.argument(
    "recipe",
    metavar="RECIPE",
    shell_complete=_complete_recipe,
    help="Name of a recipe (e.g. tiny) or a YAML file.",
)
overrides_argument = click.argument(
    "overrides",
    metavar="[section.key=value]...",
    nargs=-1,
    shell_complete=_complete_override,
    help="Replaces a value of the recipe (see `plast options`).",
)
nproc_option = click.option(
    "--nproc",
    metavar="N",
    type=COUNT,
    help="Ranks on this machine (default: one per GPU, or one on the CPU).",
)
run_out_option = path_option("--out", "RUN", "The run's folder.", required=True)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")


def _stages_command(name: str, stages: tuple[str, ...], summary: str) -> None:
    @commands.command(name, help=summary)
    @recipe_argument
    @overrides_argument
    @run_out_option
    @nproc_option
    def run(recipe: str, overrides: tuple[str, ...], out: Path, nproc: int | None) -> int:
        from launcher.commands.run import run_stages

        return run_stages(recipe, overrides, out, nproc, stages)


_stages_command("run", STAGES, "All stages in order, skipping what is done.")
for _stage, _summary in {
    "collect": "Record which FFN neurons are active for each question in each language.",
    "select": "Select the layers that are specific to languages.",
    "train": "Train the selected layers to translate questions into English.",
    "export": "Write the trained model as a Hugging Face folder.",
}.items():
    _stages_command(_stage, (_stage,), f"Only this stage: {_summary[0].lower()}{_summary[1:]}")


@commands.command(greedy=["--benchmarks"])
@click.argument("target", metavar="RECIPE|MODEL|RUN", shell_complete=_complete_recipe)
@overrides_argument
@click.option(
    "--benchmarks",
    metavar="FILE...",
    multiple=True,
    help="NAME_LANG.tsv, .parquet, .json or a folder; NAME.jsonl (parallel questions with answers).",
)
@path_option("--out", "DIR", "The run's folder; with --benchmarks by default runs/evaluate-NAME.")
@nproc_option
def evaluate(
    target: str, overrides: tuple[str, ...], benchmarks: tuple[str, ...], out: Path | None, nproc: int | None
) -> int:
    """Score a model, or a run's base and trained model, on benchmarks.

    With --benchmarks the target is a model's folder or a run's (its base and its export), otherwise a recipe.
    """
    if benchmarks:
        from launcher.commands.evaluate import run_evaluation

        return run_evaluation(target, benchmarks, overrides, out, nproc)
    if out is None:
        raise UserError(
            "evaluate: give --benchmarks FILE … for a model or a run, or --out RUN for a recipe's stage"
        )
    from launcher.commands.run import run_stages

    return run_stages(target, overrides, out, nproc, ("evaluate",))


_stages_command(
    "analyse",
    ("analyse",),
    "Only this stage: attention maps, layer knock-out, stability, representations, specific neurons.",
)


@commands.command()
@click.argument("target", metavar="RECIPE|RUN", shell_complete=_complete_recipe)
@click.argument("others", metavar="[section.key=value|RUN]...", nargs=-1, shell_complete=_complete_override)
@path_option("--out", "RUN|FILE", "The run's folder; of several runs the page (comparison.html).")
@nproc_option
def report(target: str, others: tuple[str, ...], out: Path | None, nproc: int | None) -> int:
    """Write one HTML page about the run, or one that compares several."""
    runs = [Path(target), *map(Path, others)]
    if len(runs) > 1 and all((run / "config.yaml").is_file() for run in runs):
        from plast_train.comparison.publish import write_comparison

        print(write_comparison(runs, out or Path("comparison.html")))
        return 0
    if out is None:
        raise UserError("report: give --out RUN for a recipe's stage, or the folders of two or more runs")
    from launcher.commands.run import run_stages

    return run_stages(target, others, out, nproc, ("report",))


@commands.command()
@recipe_argument
@overrides_argument
@json_option
def plan(recipe: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Memory, time and traffic of a run, before it costs anything."""
    from launcher.commands.plan import run_plan

    return run_plan(recipe, overrides, as_json)


@commands.command()
@recipe_argument
@overrides_argument
@run_out_option
@click.option("--nodes", metavar="N", type=COUNT, help="Nodes of the one job.")
@click.option(
    "--stages",
    metavar="STAGE=N,…",
    help="Jobs of different sizes that wait for each other, e.g. collect=1,train=4: the nodes of a stage "
    "and of those that follow it.",
)
@click.option("--nproc", metavar="N", type=COUNT, help="Ranks per node (default: one per GPU).")
@click.option("--gpus-per-node", metavar="GPUS-PER-NODE", help="sbatch's --gpus-per-node")
@click.option("--time", metavar="TIME", help="sbatch's --time")
@click.option("--partition", metavar="PARTITION", help="sbatch's --partition")
@click.option("--account", metavar="ACCOUNT", help="sbatch's --account")
@click.option("--qos", metavar="QOS", help="sbatch's --qos")
@click.option("--constraint", metavar="CONSTRAINT", help="sbatch's --constraint")
@click.option("--dry-run", is_flag=True, help="Print what would be submitted.")
def submit(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path,
    nodes: int | None,
    stages: str | None,
    nproc: int | None,
    dry_run: bool,
    **sbatch: str | None,
) -> int:
    """Submit the run to Slurm, as one job or a chain."""
    from launcher.commands.submit import submit

    options = {name.replace("_", "-"): value for name, value in sbatch.items() if value is not None}
    return submit(recipe, overrides, out, nodes, stages, nproc, options, dry_run)


@commands.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@json_option
def status(run: Path, as_json: bool) -> int:
    """What a run has done, how far it is, and why it was restarted."""
    from launcher.commands.status import run_status

    return run_status(run, as_json)


@commands.command(greedy=["--layer", "--language"])
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--question", metavar="ID", required=True, help="A record's id (RUN/records.jsonl).")
@click.option(
    "--layer",
    metavar="L...",
    type=click.IntRange(min=0),
    multiple=True,
    help="Decoder layers, 0-based (default: the middle one).",
)
@click.option("--language", metavar="LANG...", multiple=True, help="Languages (default: all of the run).")
@path_option("--out", "DIR", "Folder of the pictures (default: RUN/analysis/attention).")
def attention(
    run: Path, question: str, layer: tuple[int, ...], language: tuple[str, ...], out: Path | None
) -> int:
    """Draw where in its image the replies to a question come from."""
    from launcher.commands.attention import draw_attention

    return draw_attention(run, question, language, layer, out)


@commands.command()
@click.argument("runs", metavar="RUN...", type=click.Path(path_type=Path), nargs=-1, required=True)
@path_option("--out", "DIR", "Also write the tables (CSV, LaTeX) and the figure (PNG, SVG) there.")
def compare(runs: tuple[Path, ...], out: Path | None) -> int:
    """Several evaluated runs side by side."""
    from plast_train.comparison.publish import compare_runs

    print(compare_runs(runs, out))
    return 0


@commands.command()
@recipe_argument
@overrides_argument
@run_out_option
@nproc_option
@click.option("--seeds", metavar="N", type=COUNT, help="Seeds of each variant (default: ablate.seeds, 3).")
@click.option(
    "--variants", metavar="NAME,…", default="", help="Only these beside the recipe's own selection."
)
def ablate(
    recipe: str, overrides: tuple[str, ...], out: Path, nproc: int | None, seeds: int | None, variants: str
) -> int:
    """The recipe's selection against others, LoRA and full fine-tuning."""
    from launcher.commands.ablate import run_ablation

    return run_ablation(recipe, overrides, out, nproc, seeds, [name for name in variants.split(",") if name])


@commands.command()
@click.option(
    "--distributed",
    is_flag=True,
    help="Check all machines together: start it on each of them at once, with NNODES, NODE_RANK, MASTER_ADDR "
    "and MASTER_PORT set.",
)
@path_option("--out", "RUN", "With --distributed: the run's folder (default: the current one).")
@click.option("--nproc", metavar="N", type=COUNT, help="With --distributed: ranks on this machine.")
@click.option("--wait", metavar="SECONDS", type=COUNT, help="With --distributed: for a late machine (40).")
def doctor(distributed: bool, **options: Any) -> int:
    """Check this machine, or several together, and say what to fix."""
    if distributed:
        from launcher.doctor.machines import run_distributed_doctor

        return run_distributed_doctor(options["out"] or Path(), options["nproc"], options["wait"] or 40)
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} needs --distributed: plast doctor alone checks this machine only")
    from launcher.doctor.machine import run_doctor

    return run_doctor()


@commands.command()
def options() -> int:
    """Every option of a recipe as a Markdown page: type, default, meaning, the stages that it redoes."""
    from launcher.commands.options import options_page

    print(options_page(), end="")
    return 0


@commands.command()
@path_option("--out", "RUN", "The run's folder.", default="runs/demo", show_default=True)
def demo(out: Path) -> int:
    """The whole method on the embedded tiny model, on the CPU."""
    from launcher.commands.run import run_stages

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same figures on every machine
    return run_stages("tiny", [], out, min(2, os.cpu_count() or 1), STAGES)


@commands.command("make-tiny")
@path_option("--out", "DIR", "The new model's folder.", required=True)
@click.option("--seed", type=int, default=0, show_default=True)
@path_option("--tokenizer", "DIR", "Folder of another tokenizer.model (with random weights).")
@click.option("--random-weights", is_flag=True, help="Do not train; ready in seconds.")
def make_tiny(out: Path, seed: int, tokenizer: Path | None, random_weights: bool) -> int:
    """Make a tiny model like the embedded one."""
    from launcher.commands.make_tiny import make

    return make(out, seed, tokenizer, random_weights)


if __name__ == "__main__":
    plast()
