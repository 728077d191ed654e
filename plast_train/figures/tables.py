"""Tables as aligned text, CSV, LaTeX and, by the macro `table` of `templates/parts.html`, HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plast_train.run_folder import publish_text

NOTHING = "–"  # a cell without a value
# One pass over the characters: the result of one replacement is never escaped a second time.
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"$\mid$",
        "–": "--",
        "²": r"\textsuperscript{2}",
        "ρ": r"$\rho$",
    }
)


class Latex(str):
    """A cell that is LaTeX already, e.g. with formulas; it is not escaped."""


@dataclass(frozen=True)
class Table:
    """Cells are text, formatted as they are shown.

    `name` is the stem of its files; a table without one is published by nobody. `groups` are headings that
    span several columns: their text and their number of columns. `classes`: index of a row → its CSS class,
    `mark` or `last`; LaTeX draws a rule above `last`. `align` has `l` or `r` for each column of text and
    LaTeX; without it the first column is on the left and the others on the right, as in HTML.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    name: str = ""
    caption: str = ""
    groups: Sequence[tuple[str, int]] = ()
    classes: Mapping[int, str] = field(default_factory=dict)
    align: str = ""

    @property
    def alignment(self) -> str:
        return self.align or "l" + "r" * (len(self.head) - 1)


def publish_table(table: Table, folder: Path, in_csv: Table | None = None) -> Table:
    """Writes `NAME.csv` and `NAME.tex` into `folder` and returns the table, for the page. The CSV holds
    `in_csv` where it is given, which has more columns than fit on a page."""
    publish_text(folder / f"{table.name}.csv", to_csv(in_csv or table))
    publish_text(folder / f"{table.name}.tex", to_latex(table))
    return table


def to_text(table: Table) -> str:
    """Columns two spaces apart, without the caption and the groups."""
    rows = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust if side == "l" else str.rjust for side in table.alignment]
    columns = list(zip(pads, widths, strict=True))
    return "\n".join(
        "  ".join(pad(cell, width) for cell, (pad, width) in zip(row, columns, strict=True)).rstrip()
        for row in rows
    )


def to_csv(table: Table) -> str:
    """A group's text is put before the headings of its columns; a dash becomes an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    groups = [label for label, span in table.groups for _ in range(span)] or [""] * len(table.head)
    writer.writerow([f"{g}: {h}" if g else h for g, h in zip(groups, table.head, strict=True)])
    writer.writerows([["" if cell == NOTHING else cell for cell in row] for row in table.rows])
    return file.getvalue()


def to_latex(table: Table) -> str:
    """A `tabular` for the package booktabs, with the caption above it as a comment."""
    lines = [f"% {' '.join(table.caption.split())}"] if table.caption else []
    lines += [f"\\begin{{tabular}}{{{table.alignment}}}", r"\toprule"]
    if table.groups:
        cells, rules, column = [], [], 1
        for label, span in table.groups:
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{_latex(label)}}}")
            if label:
                rules.append(rf"\cmidrule(lr){{{column}-{column + span - 1}}}")
            column += span
        lines += [" & ".join(cells) + r" \\", " ".join(rules)]
    lines += [" & ".join(map(_latex, table.head)) + r" \\", r"\midrule"]
    for i, row in enumerate(table.rows):
        if table.classes.get(i) == "last":
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_latex, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex(cell: str) -> str:
    return cell if isinstance(cell, Latex) else cell.translate(_LATEX)
