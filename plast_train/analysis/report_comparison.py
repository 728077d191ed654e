"""`plast report RUN RUN …`: one page that sets runs side by side."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from html import escape
from pathlib import Path

from plast_train.analysis.html_page import Section, figure, numbers, page, paragraph
from plast_train.analysis.report_tables import NOTHING
from plast_train.comparison.publish import compare_runs
from plast_train.evaluation.accuracies import ENGLISH, MEAN
from plast_train.run_folder import publish_text

Lines = list[dict[str, str]]
_COSTS = {
    "method": "method",
    "modules": "modules",
    "layers": "layers",
    "trained_percent": "trained (%)",
    "steps": "steps",
    "training_seconds": "training (s)",
    "peak_memory_gb": "peak memory (GB)",
}


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Writes the page `out`, or `out/comparison.html`, and beside it the tables and the figure that
    `plast compare` makes. Returns the page.

    Raises:
        UserError: a run is not evaluated, has no benchmark, or others than the first.
    """
    path = out if out.suffix == ".html" else out / "comparison.html"
    text = compare_runs(runs, path.parent)
    with (path.parent / "comparison.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    caption = "Change of accuracy by training, generated answers, with its 95 % interval."
    sections = [
        Section(
            "accuracy", "Accuracy", figure(path.parent / "comparison.svg", caption, True) + _changes(lines)
        ),
        Section("runs", "Runs", _runs(lines)),
        Section("languages", "Each language", f"<pre>{escape(text)}</pre>"),
    ]
    lead = paragraph(
        "The same benchmarks, answered by each run's base and by what it trained. Tables (CSV, LaTeX) and "
        "the figure lie beside this page.",
        "lead",
    )
    publish_text(path, page(f"Comparison of {len(runs)} runs", lead, sections))
    return path


def _changes(lines: Lines) -> str:
    """A table a benchmark: English, mean of the others, and how that mean differs from the first run's."""
    first = lines[0]["name"]
    tables = []
    for benchmark in dict.fromkeys(line["benchmark"] for line in lines):
        own = {
            (line["name"], line["language"]): line
            for line in lines
            if line["benchmark"] == benchmark and line["score"] == "generated"
        }
        rows = []
        for name in dict.fromkeys(name for name, _ in own):
            english, mean = own.get((name, ENGLISH)), own.get((name, MEAN))
            rows.append([name, *_accuracy(english), *_accuracy(mean), *_ends(mean, f"_from_{first}")])
        head = ["run", *["trained (%)", "change", "95 % from", "to"] * 2, "change", "95 % from", "to"]
        groups = [("", 1), ("English", 4), (MEAN, 4), (f"mean, from {first}", 3)]
        caption = f"{escape(benchmark)}: accuracy of generated answers; changes in percentage points."
        tables.append(numbers(caption, head, rows, groups=groups))
    return "".join(tables)


def _accuracy(line: dict[str, str] | None) -> list[str]:
    return [NOTHING] * 4 if line is None else [f"{float(line['trained']):.1f}", *_ends(line, "")]


def _ends(line: dict[str, str] | None, suffix: str) -> list[str]:
    """The change and its interval."""
    values = [(line or {}).get(f"{key}{suffix}", "") for key in ("change", "low", "high")]
    return [NOTHING if value in ("", "nan") else f"{float(value):+.1f}" for value in values]


def _runs(lines: Lines) -> str:
    by_run = {line["name"]: line for line in reversed(lines)}
    rows = [
        [name, *(_shown(by_run[name][key]) for key in _COSTS)]
        for name in dict.fromkeys(line["name"] for line in lines)
    ]
    return numbers("What each run trained, and at what cost.", ["run", *_COSTS.values()], rows)


def _shown(cell: str) -> str:
    """Numbers with a fraction to two digits."""
    whole, dot, fraction = cell.partition(".")
    return f"{float(cell):.2f}" if dot and (whole + fraction).isdigit() else cell
