"""A self-contained HTML page: figures are embedded, there is no script, and its policy forbids every request.

Every text that is put in is escaped here.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body {
  font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
}
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
.figures img { width: 28rem; max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th[colspan] { text-align: center; }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts td:first-child { color: #555; min-width: 12rem; }
.mark td { background: #fbe9dd; }
.last td { border-top: 1px solid #555; font-weight: 600; }
.warning { border-left: 4px solid #d55e00; padding: .2rem .8rem; background: #fdf3ec; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: 13px; }
"""


def page(title: str, summary: str, sections: Sequence[str]) -> str:
    """The whole document; `sections` are HTML, title and summary are text."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(summary)}</p>
{"".join(sections)}
</body>
</html>
"""


def figures(pictures: Mapping[str, Path]) -> str:
    """Title → path of an SVG. It is embedded as an image, which can neither run nor load anything."""
    images = []
    for title, path in pictures.items():
        data = b64encode(path.read_bytes()).decode("ascii")
        images.append(f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">')
    return f'<div class="figures">{"".join(images)}</div>'


def facts(values: Mapping[str, Any]) -> str:
    """A table of names and what they are."""
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in values.items()
    )
    return f'<table class="facts">{rows}</table>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    classes: Mapping[int, str] | None = None,
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """A table of numbers. `classes` gives rows by their index a CSS class: `mark` or `last`; `groups` are
    headings over several columns each, with their number."""

    def line(cells: Iterable[str], tag: str) -> str:
        return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)

    over = "".join(f'<th colspan="{span}">{escape(label)}</th>' for label, span in groups)
    body = "".join(
        f'<tr class="{(classes or {}).get(i, "")}">{line(row, "td")}</tr>' for i, row in enumerate(rows)
    )
    return f'<div class="wide"><table><tr>{over}</tr><tr>{line(head, "th")}</tr>{body}</table></div>'
