"""A table of the report in the three forms that a reader wants: in the page, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from plast_train.figures.page import file_links, numbers
from plast_train.run_folder import publish_text

NOTHING = "–"
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "²": r"\textsuperscript{2}",
    "ρ": r"$\rho$",
}


@dataclass(frozen=True)
class Table:
    """`name` is its files' name. `groups` are headings over several columns each, with their number;
    `classes` gives rows by their index a CSS class, `mark` or `last`."""

    name: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[tuple[str, int]] = ()
    classes: Mapping[int, str] = field(default_factory=dict)


def publish_table(table: Table, folder: Path, in_csv: Table | None = None) -> str:
    """Writes `NAME.csv` and `NAME.tex` into `folder`; returns the HTML, which links them. The CSV holds
    `in_csv` where that is given, which has more columns than a page."""
    publish_text(folder / f"{table.name}.csv", to_csv(in_csv or table))
    publish_text(folder / f"{table.name}.tex", to_latex(table))
    links = file_links(f"{table.name}.csv", f"{table.name}.tex")
    return numbers(f"{escape(table.caption)} {links}", table.head, table.rows, table.classes, table.groups)


def to_csv(table: Table) -> str:
    """One heading a column, its group before it; a dash becomes an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    groups = list(_by_column(table.groups)) or [""] * len(table.head)
    writer.writerow([f"{g}: {h}" if g else h for g, h in zip(groups, table.head, strict=True)])
    writer.writerows([["" if cell == NOTHING else cell for cell in row] for row in table.rows])
    return file.getvalue()


def to_latex(table: Table) -> str:
    """A `tabular` for the package booktabs, the caption above it as a comment."""
    lines = [f"% {' '.join(table.caption.split())}", f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}"]
    lines.append(r"\toprule")
    if table.groups:
        cells = [rf"\multicolumn{{{span}}}{{c}}{{{_latex(label)}}}" for label, span in table.groups]
        lines += [" & ".join(cells) + r" \\", _rules(table.groups)]
    lines += [" & ".join(map(_latex, table.head)) + r" \\", r"\midrule"]
    for i, row in enumerate(table.rows):
        if table.classes.get(i) == "last":
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_latex, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def file_name(name: str) -> str:
    """A benchmark's name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _by_column(groups: Sequence[tuple[str, int]]) -> Iterator[str]:
    for label, span in groups:
        yield from [label] * span


def _rules(groups: Sequence[tuple[str, int]]) -> str:
    """A line under each heading over several columns."""
    rules, column = [], 1
    for label, span in groups:
        if label:
            rules.append(rf"\cmidrule(lr){{{column}-{column + span - 1}}}")
        column += span
    return " ".join(rules)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
