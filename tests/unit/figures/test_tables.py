"""One table in its forms; the page shows it as HTML."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError
from support.html_reader import Page

from plast_train.figures.page import Section, write_page
from plast_train.figures.tables import Latex, Table, publish_table, to_csv, to_latex, to_text

NASTY = r"a\b{c}_d%e&f#g~h^i$"
TABLE = Table(
    head=["language", "base", "change"],
    rows=[["en", "50.0", "+1.5"], [NASTY, "–", "a, b"], ["mean", "7", ""]],
    name="quiz",
    caption="A quiz,\nin %.",
    groups=[("", 1), ("generated", 2)],
    classes={2: "last"},
)


def test_every_special_character_of_latex_is_escaped_once():
    (row,) = [line for line in to_latex(TABLE).splitlines() if line.startswith("a")]
    escaped = r"a\textbackslash{}b\{c\}\_d\%e\&f\#g\textasciitilde{}h\textasciicircum{}i\$"
    assert row == rf"{escaped} & -- & a, b \\"


def test_latex_has_groups_rules_and_ready_cells():
    assert to_latex(TABLE).splitlines() == [
        "% A quiz, in %.",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{generated} \\",
        r"\cmidrule(lr){2-3}",
        r"language & base & change \\",
        r"\midrule",
        r"en & 50.0 & +1.5 \\",
        to_latex(TABLE).splitlines()[8],
        r"\midrule",
        r"mean & 7 &  \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    ready = Table(["x", "y"], [["0 | 3", Latex("$p<.001$")]], align="ll")
    assert r"\begin{tabular}{ll}" in to_latex(ready) and r"0 $\mid$ 3 & $p<.001$ \\" in to_latex(ready)


def test_csv_joins_groups_and_headings_and_has_no_dashes():
    assert to_csv(TABLE).splitlines() == [
        "language,generated: base,generated: change",
        "en,50.0,+1.5",
        f'{NASTY},,"a, b"',
        "mean,7,",
    ]


def test_text_is_aligned():
    table = Table(["", "time s", "what"], [["msd", "4", "the recipe"], ["all", "1200", ""]], align="lrl")
    assert to_text(table).splitlines() == ["     time s  what", "msd       4  the recipe", "all    1200"]


def test_html_is_escaped_and_names_the_files(tmp_path: Path):
    publish_table(TABLE, tmp_path)
    caption = Table(["<b>"], [["<script>"]], caption="'\"&<i>")
    for name, table in (("named", TABLE), ("unnamed", caption)):
        section = Section("runs", "<u>", table)
        write_page(tmp_path / f"{name}.html", "comparison", "<title>", [section])
    named, unnamed = (Page((tmp_path / f"{name}.html").read_text()) for name in ("named", "unnamed"))
    assert named.tables == [[["", "generated"], list(TABLE.head), *map(list, TABLE.rows)]]
    assert named.addresses == ["#runs", "quiz.csv", "quiz.tex"]
    assert all((tmp_path / file).is_file() for file in named.addresses[1:])
    assert unnamed.tables == [[["<b>"], ["<script>"]]] and "'\"&<i>" in unnamed.text
    assert unnamed.addresses == ["#runs"] and not unnamed.tags & {"b", "script", "i", "u"}


def test_a_template_that_lacks_its_content_fails(tmp_path: Path):
    with pytest.raises(UndefinedError, match="summary"):
        write_page(tmp_path / "page.html", "report", "title", [], lead={})
    assert not (tmp_path / "page.html").exists()
