"""`plast report RUN RUN …`: one page that sets runs side by side."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from html import escape
from pathlib import Path

from plast_train.comparison.publish import compare_runs
from plast_train.data.languages import ENGLISH
from plast_train.figures.page import Section, figure, numbers, page, paragraph
from plast_train.figures.tables import NOTHING
from plast_train.run_folder import publish_text
from plast_train.scoring.accuracies import MEAN, p_value

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
    """A table a benchmark: English, mean of the others, that by option logits, and how it differs from the
    first run's."""
    first = lines[0]["name"]
    tables = []
    for benchmark in dict.fromkeys(line["benchmark"] for line in lines):
        own = [line for line in lines if line["benchmark"] == benchmark]
        found = {(line["name"], line["score"], line["language"]): line for line in own}
        rows = []
        for name in dict.fromkeys(line["name"] for line in own):
            english, mean = (found.get((name, "generated", label), {}) for label in (ENGLISH, MEAN))
            logits = found.get((name, "option_logits", MEAN), {})
            against = _change(mean, f"_from_{first}")
            rows.append([name, *_accuracy(english), *_accuracy(mean), *_change(logits, ""), *against])
        change = ["change", "95 % from", "to", "p"]
        head = ["run", *["trained (%)", *change] * 2, *change * 2]
        groups = [("", 1), ("English", 5), (MEAN, 5), ("mean, option logits", 4)]
        groups.append((f"mean, from {first}", 4))
        caption = (
            f"{escape(benchmark)}: accuracy of generated answers; changes in percentage points. p is "
            "McNemar's exact test, for English corrected over the languages (Holm)."
        )
        tables.append(numbers(caption, head, rows, groups=groups) + _formatting(own))
    return "".join(tables)


def _formatting(lines: Lines) -> str:
    found = [f"{line['name']} ({line['language']})" for line in lines if line["formatting"]]
    text = f"Formatting: generated answers gain, option logits do not: {', '.join(found)}."
    return paragraph(text) if found else ""


def _accuracy(line: dict[str, str]) -> list[str]:
    return [f"{float(line['trained']):.1f}" if line else NOTHING, *_change(line, "")]


def _change(line: dict[str, str], suffix: str) -> list[str]:
    """The change, its interval and p."""
    values = [line.get(f"{key}{suffix}", "") for key in ("change", "low", "high")]
    shown = [NOTHING if value in ("", "nan") else f"{float(value):+.1f}" for value in values]
    p = line.get(f"p_holm{suffix}") or line.get(f"p{suffix}")
    return [*shown, p_value(float(p)) if p else NOTHING]


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
