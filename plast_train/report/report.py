"""The stage `report`: one page that shows what a run found, trained and gained.

`RUN/report/index.html` is self-contained; the figures (SVG, PNG) and tables (CSV, LaTeX) that it shows lie
beside it. Each section is data made here and HTML made by its template in `figures/templates/report/`.
"""

from __future__ import annotations

from pathlib import Path

from plast_train.config import Config
from plast_train.context import Context
from plast_train.figures.page import write_page
from plast_train.report.accuracy import accuracy_section
from plast_train.report.analyses import analyses_section
from plast_train.report.examples import examples_section
from plast_train.report.lead import lead_of
from plast_train.report.results import read_results
from plast_train.report.run import cost_section, layer_section, training_section, version_section
from plast_train.run_folder import RunFolder


def report(context: Context) -> list[Path]:
    """Writes `RUN/report/index.html` and the files beside it, and returns the page. Rank 0 does the work."""
    context.ranks.on_first(lambda: write_report(context.config, context.run))
    return [context.run.report / "index.html"]


def write_report(config: Config, run: RunFolder) -> None:
    """The page of a trained and evaluated run. The figures `overlap` and `msd` are already in `RUN/report`:
    the stage `select` has drawn them."""
    results = read_results(run, config.evaluate.matching)
    sections = [
        layer_section(run),
        training_section(run),
        accuracy_section(results, run),
        examples_section(results, config.evaluate, run) if results else None,
        analyses_section(run),
        cost_section(run),
        version_section(run),
    ]
    write_page(
        run.report / "index.html",
        "report",
        f"{Path(config.model.path).name}: language-specific layers, fine-tuned",
        [section for section in sections if section is not None],
        lead_of(run, config, results),
    )
