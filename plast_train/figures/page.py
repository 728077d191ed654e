"""Writes a self-contained HTML page from the templates beside this module.

Figures are embedded, there is no script, and the page's policy forbids every request. Jinja2 escapes every
text that a template inserts. Figures are SVG images rather than elements of the page: as images they can
neither run nor load anything, and their ids cannot clash.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plast_train.run_folder import publish_text


@dataclass(frozen=True)
class Section:
    """A chapter of a page. The template `KIND/ANCHOR.html` turns its `content` into HTML."""

    anchor: str
    title: str
    content: Any


def write_page(path: Path, kind: str, title: str, sections: Sequence[Section], lead: Any = None) -> None:
    """Writes the page `path`; `kind` is the folder of its templates, of which `lead.html` shows `lead` above
    the contents. Figures are looked up beside the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty place in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = lambda name: data_uri(
        (path.parent / name).read_bytes(), "image/svg+xml"
    )
    template = environment.get_template("page.html")
    publish_text(path, template.render(kind=kind, title=title, lead=lead, sections=sections) + "\n")


def data_uri(content: bytes, media_type: str) -> str:
    """An image as the address of an `<img>`."""
    return f"data:{media_type};base64,{b64encode(content).decode('ascii')}"
