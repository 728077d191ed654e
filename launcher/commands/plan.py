"""`plast plan`: everything that can be known before a GPU is spent. Needs neither a GPU nor the weights."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from launcher.arguments import RECIPE_HELP, Command, as_json, recipe


@click.command(
    cls=Command, epilog=f"{RECIPE_HELP} plan.key=value replaces what the plan assumes, e.g. plan.gpus=4."
)
@recipe
@as_json
def plan(recipe: str, overrides: tuple[str, ...], as_json: bool) -> int:
    return run_plan(recipe, overrides, as_json)


def run_plan(recipe: str, overrides: Sequence[str], as_json: bool) -> int:
    """Prints the plan of a recipe or YAML file: a page of text, or one JSON object. Returns 0.

    Raises:
        UserError: a wrong option, an unknown model, or data files that exist and have defects.
    """
    from launcher.checks.paths import resolve_paths
    from launcher.plan.page import plan_page
    from launcher.plan.plan import PREFIX, make_plan, read_options
    from plast_train.config import load_config

    options = read_options([o for o in overrides if o.startswith(PREFIX)])
    config = resolve_paths(load_config(recipe, [o for o in overrides if not o.startswith(PREFIX)]))
    plan = make_plan(recipe, config, options)
    print(json.dumps(plan, indent=1, ensure_ascii=False) if as_json else plan_page(plan), flush=True)
    return 0
