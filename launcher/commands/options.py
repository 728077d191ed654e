"""`plast options`: a Markdown page of every option, made from the config's own types."""

from __future__ import annotations

import json
import types
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

from launcher.arguments import Command

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

INTRODUCTION = """\
# Options

Written by `plast options` from the types in `plast_train/config.py`; do not edit.

A recipe (a YAML file) sets them by section, the command line as `section.key=value`. "Redoes" names the
stages whose settings include the option: change it, and the next `plast run` redoes these stages and those
that use their results. A dash is followed by the reason why no stage has the option.
"""
PLAN = """
## plan

Only for `plast plan`, on the command line: what the plan assumes and the config does not say.
"""


@click.command(cls=Command)
def options() -> int:
    print(options_page(), end="")
    return 0


def options_page() -> str:
    """The whole page; docs/options.md is a copy of it."""
    from launcher.plan.plan import PREFIX, PlanOptions
    from plast_train.config import options_of
    from plast_train.stages import NOT_IN_A_STAGE, redone_by

    lines, section = [INTRODUCTION.rstrip()], None
    # Those without a section come first, wherever they are in the type.
    for name, field in sorted(options_of(), key=lambda option: "." in option[0]):
        head = name.rpartition(".")[0] or "Without a section"
        if head != section:
            section = head
            lines += ["", f"## {head}", "", *_head("name", "type", "default", "what it does", "redoes")]
        redone = ", ".join(redone_by(name)) or f"– ({NOT_IN_A_STAGE[name]})"
        lines.append(_row(f"`{name}`", _type(field), _default(field), field.description or "", redone))
    lines += [PLAN.rstrip(), "", *_head("name", "type", "default", "what it does")]
    for name, field in options_of(PlanOptions, PREFIX):
        lines.append(_row(f"`{name}`", _type(field), _default(field), field.description or ""))
    return "\n".join(lines) + "\n"


def _head(*columns: str) -> list[str]:
    return [_row(*columns), _row(*("---" for _ in columns))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _type(field: FieldInfo) -> str:
    """With the bounds, e.g. `integer, at least 1`."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    bounds = [
        f"{word} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, word in words.items()
        if hasattr(bound, name)
    ]
    return ", ".join([_readable(field.annotation), *bounds])


def _readable(kind: Any) -> str:
    """A Python type in words, e.g. `one of msd, layers` for a Literal."""
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any value"}
    if kind in names:
        return names[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _readable(inner[0])
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):  # only used as `X | None`
        return _readable(inner[0]) + " or null"
    if origin is list:
        return f"list of {_readable(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}: {_readable(inner[0])}"
    if origin is dict:
        return f"map from {_readable(inner[0])} to {_readable(inner[1])}"
    raise TypeError(f"{kind}: no words for this type")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"
