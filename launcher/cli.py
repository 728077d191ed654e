"""The `plast` command: finds the subcommand's module and reports what went wrong. A module is imported only
when its command is called, so that help and refusals come at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from plast_train.errors import UserError, nearest

# Command → the module in launcher/commands that has it, and what it does.
COMMANDS = {
    "run": ("run", "all stages in order, skipping what is done"),
    "collect": ("run", "only this stage: record which FFN neurons are active for each question and language"),
    "select": ("run", "only this stage: choose the layers that are specific to languages"),
    "train": ("run", "only this stage: train the selected layers to translate questions into English"),
    "export": ("run", "only this stage: write the trained model as a Hugging Face folder"),
    "evaluate": ("evaluate", "score a model, or a run's base and trained model, on benchmarks"),
    "analyse": (
        "run",
        "only this stage: attention maps, knocked-out layers, stability, languages' neurons",
    ),
    "report": ("report", "write one HTML page about the run, or one that compares several"),
    "plan": ("plan", "memory, time and traffic of a run, before it costs anything"),
    "submit": ("submit", "submit the run to Slurm, as one job or a chain"),
    "status": ("status", "what a run has done, how far it is, and why it was restarted"),
    "attention": ("attention", "draw where in its image the replies to a question come from"),
    "compare": ("compare", "several runs side by side"),
    "ablate": ("ablate", "the recipe's selection against others, LoRA and full fine-tuning"),
    "doctor": ("doctor", "check this machine and say what to fix"),
    "options": ("options", "every section.key that a recipe or the command line can set"),
    "demo": ("demo", "the whole method on the embedded tiny model, on CPU"),
    "make-tiny": ("make_tiny", "make a tiny model like the embedded one"),
}


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Raises UserError for an unknown command; names the nearest one."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:  # completing a line that is not finished
                return None
            raise UserError(f"unknown command '{cmd_name}'{nearest(cmd_name, COMMANDS)} (see plast --help)")
        module, summary = COMMANDS[cmd_name]
        found = getattr(import_module(f"launcher.commands.{module}"), cmd_name.replace("-", "_"))
        assert isinstance(found, click.Command)
        found.help = summary
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table above, because click would import every module for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(
    cls=Commands,
    invoke_without_command=True,
    options_metavar="",
    subcommand_metavar="COMMAND ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Finds the layers of a vision-language model where languages diverge and trains only those.",
    epilog="plast COMMAND --help explains one. Exit codes: 0 done, 2 you can fix it, 1 otherwise. "
    'Completion in bash: eval "$(_PLAST_COMPLETE=bash_source plast)"; zsh_source and fish_source likewise.',
)
@click.version_option(package_name="plast", message="plast %(version)s")
@click.pass_context
def commands(context: click.Context) -> int:
    if context.invoked_subcommand is None:
        print(context.get_help())
    return 2


def plast() -> NoReturn:
    """The script's entry point: `main`, then an immediate exit. Once torch is imported, Python's own exit
    takes seconds on a busy machine, and whoever waits for a failed run to restart it waits for them too."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 when done, 2 for what the user can fix, 1 otherwise."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = ["--help"]
    logging.basicConfig(level=logging.WARNING, format="plast: %(levelname)s: %(message)s")
    try:
        code: int = commands.main(words, prog_name="plast", standalone_mode=False)
        return code
    except click.UsageError as error:
        message, usage = error.format_message(), ""
        if error.ctx is not None:
            usage = "\n" + error.ctx.get_usage()
            if isinstance(error, click.NoSuchOption):
                names = [name for option in error.ctx.command.get_params(error.ctx) for name in option.opts]
                message = f"unknown option {error.option_name}{nearest(error.option_name, names)}"
        print(f"plast: {message}{usage}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"plast: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, click.Abort):
        print("plast: stopped", file=sys.stderr)
        return 1


if __name__ == "__main__":
    plast()
