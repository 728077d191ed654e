"""What the commands' arguments have in common. Imports nothing heavy: help must answer at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
RECIPE_HELP = (
    "RECIPE is the name of a recipe (e.g. tiny) or a YAML file. section.key=value replaces a value of the "
    "recipe; plast options lists them all."
)


class Command(click.Command):
    """A command whose repeatable options also take several words at once: `--layer 3 5`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises click.UsageError for wrong arguments."""
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        valued = {name for option in options if not option.is_flag for name in option.opts}
        repeatable = {name for option in options if option.multiple for name in option.opts}
        words: list[str] = []
        current = ""  # the repeatable option that the next words belong to
        for position, word in enumerate(args):
            # click would take the next option for the value.
            if word.startswith("--") and words and words[-1] in valued:
                raise click.UsageError(f"Option '{words[-1]}' requires an argument.", ctx)
            if word == "--":
                words += args[position:]
                break
            if word.startswith("--"):
                current = word if word in repeatable else ""
            elif current and words[-1] != current:
                words.append(current)
            words.append(word)
        return super().parse_args(ctx, words)


def arguments(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several of click's decorators as one, in the order of the help."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def _complete_recipe(_context: object, _parameter: object, begun: str) -> Sequence[str]:
    from plast_train.config import recipes

    return [name for name in recipes() if name.startswith(begun)]


def _complete_override(_context: object, _parameter: object, begun: str) -> Sequence[str]:
    from plast_train.config import options_of

    return [f"{name}=" for name, _ in options_of() if name.startswith(begun)]


overrides = click.argument(
    "overrides", metavar="[section.key=value]...", nargs=-1, shell_complete=_complete_override
)
recipe = arguments(
    click.argument("recipe", metavar="RECIPE", shell_complete=_complete_recipe),
    overrides,
)
out = click.option("--out", metavar="RUN", type=PATH, required=True, help="the run's folder")
nproc = click.option(
    "--nproc",
    metavar="N",
    type=click.IntRange(min=1),
    help="ranks on this machine (default: one for each GPU, or one on the CPU)",
)
as_json = click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
