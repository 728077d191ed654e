"""`plast options`: docs/options.md, made from the config's own types."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from plast_train.config import options
from plast_train.stages import stages_redone_by


def options_page() -> str:
    """The page as Markdown: a table per section, an option a line."""
    lines = [
        "# Options",
        "",
        "Made by `plast options > docs/options.md`. Give an option as `section.key=value` on the command",
        "line, or as `key: value` below `section:` in a YAML file. *Redoes* names the stages that are redone",
        "when the option changes; those that need their results follow. A dash: no finished stage is redone.",
    ]
    section = None
    for key, field in options():
        name = key.partition(".")[0] if "." in key else "top level"
        if name != section:
            lines += [
                "",
                f"## {name}",
                "",
                "| option | type | default | what it does | redoes |",
                "|---|---|---|---|---|",
            ]
            section = name
        cells = [f"`{key}`", _type(field.annotation), _default(field), field.description or "", _redoes(key)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(annotation: Any) -> str:
    """The type in words: `one of msd, layers`, `integer or nothing`, `list of texts`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is list:
        return f"list: {_type(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} numbers"
    if origin is dict:
        return "mapping"
    return {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "nothing"}[
        annotation
    ]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "`" + ", ".join(map(str, value if isinstance(value, list | tuple) else [value])) + "`"


def _redoes(key: str) -> str:
    return ", ".join(f"`{stage}`" for stage in stages_redone_by(key)) or "—"
