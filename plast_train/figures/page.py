"""A self-contained HTML page: pictures are embedded, there is no script, its policy forbids every request.

Every text that is put in is escaped here. Figures are SVG images rather than elements of the page: as images
they can neither run nor load anything, and their ids cannot meet.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Section:
    """A chapter of the page; `body` is HTML."""

    anchor: str
    title: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document with its contents; `lead` is HTML and stands above them."""
    style = (files("plast_train.report") / "report.css").read_text(encoding="utf-8")
    contents = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    bodies = "".join(
        f'<section id="{s.anchor}">\n<h2>{escape(s.title)}</h2>\n{s.body}\n</section>\n' for s in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{lead}
</header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{bodies}</main>
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def said(text: str, language: str, tag: str = "bdi") -> str:
    """A text in some language: its own letters decide whether it runs from the right."""
    return f'<{tag} lang="{escape(language)}" dir="auto">{escape(text)}</{tag}>'


def picture(content: bytes, kind: str, alt: str) -> str:
    """An embedded image; `kind` is its media type."""
    data = b64encode(content).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:{kind};base64,{data}">'


def figure(svg: Path, caption: str, wide: bool = False) -> str:
    """An SVG that lies beside the page with its PNG, and what it shows."""
    shown = picture(svg.read_bytes(), "image/svg+xml", caption.partition(".")[0])
    links = file_links(svg.name, svg.with_suffix(".png").name)
    below = f"<figcaption>{escape(caption)} {links}</figcaption>"
    return f"<figure{_class('wide' if wide else '')}>{shown}{below}</figure>"


def figures(parts: Iterable[str]) -> str:
    """Figures beside each other where the page is wide enough."""
    return f'<div class="figures">{"".join(parts)}</div>'


def file_links(*names: str) -> str:
    """Links to files beside the page, each called by its ending."""
    shown = " · ".join(f'<a href="{escape(n)}">{escape(n.rpartition(".")[2].upper())}</a>' for n in names)
    return f'<span class="files">{shown}</span>'


def facts(values: Mapping[str, Any]) -> str:
    """A table of names and what they are."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(str(value))}</td></tr>'
        for key, value in values.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def numbers(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    classes: Mapping[int, str] | None = None,
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """A table of numbers; `caption` is HTML. `classes` gives rows by their index a CSS class, `mark` or
    `last`; `groups` are headings over several columns each, with their number."""
    over = "".join(
        f'<th colspan="{span}" scope="colgroup">{escape(label)}</th>'
        if label
        else f'<td colspan="{span}"></td>'
        for label, span in groups
    )
    over = f"<tr>{over}</tr>" if over else ""
    titles = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f"<tr{_class((classes or {}).get(i, ''))}>{_cells(row)}</tr>\n" for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table class="numbers"><caption>{caption}</caption>\n'
        f"<thead>{over}<tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _cells(row: Sequence[str]) -> str:
    first, *others = row
    return f'<th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in others)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
