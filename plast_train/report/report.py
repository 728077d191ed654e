"""The stage `report`: one page that shows what a run found, trained and gained.

`RUN/report/index.html` is self-contained; the figures (SVG, PNG) and tables (CSV, LaTeX) that it shows lie
beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from plast_train.config import Config
from plast_train.context import Context
from plast_train.data.languages import ENGLISH, language_name
from plast_train.figures.page import page
from plast_train.report.accuracy import Result, accuracy_section, headlines, read_results
from plast_train.report.analyses import analyses_section
from plast_train.report.examples import examples_section
from plast_train.report.layers import layer_section
from plast_train.report.training import cost_section, run_section, training_section
from plast_train.report.warnings import warnings
from plast_train.run_folder import RunFolder, publish_text, read_json


def report(context: Context) -> list[Path]:
    """Writes `RUN/report/index.html` and what lies beside it, and returns the page. Rank 0 does the work."""
    context.ranks.on_first(lambda: write_report(context.config, context.run))
    return [context.run.report / "index.html"]


def write_report(config: Config, run: RunFolder) -> None:
    """The page of a run that has been trained and evaluated, with the figures that selecting left there."""
    results = read_results(run, config.evaluate.matching)
    analyses = analyses_section(run)
    sections = [
        layer_section(run),
        training_section(run),
        accuracy_section(results, run),
        *([examples_section(results, config.evaluate, run)] if results else []),
        *([analyses] if analyses else []),
        cost_section(run),
        run_section(run),
    ]
    title = f"{Path(config.model.path).name}: language-specific layers, fine-tuned"
    publish_text(run.report / "index.html", page(title, _lead(run, config, results), sections))


def _lead(run: RunFolder, config: Config, results: list[Result]) -> str:
    """What was done, what came of it, and what to be wary of."""
    lead = f'<p class="lead">{escape(_done(run, config))}</p>'
    if results:
        lead += f"<ul>{headlines(results)}</ul>"
    return lead + warnings(results, run)


def _done(run: RunFolder, config: Config) -> str:
    selection, layers = read_json(run.selection), read_json(run.summary)["layers"]
    chosen = selection["selected_layers"]
    some = f"ecoder layer{'s' * (len(chosen) > 1)} {_listed(chosen)} of 0 to {layers - 1}"
    what = {
        "layers": f"d{some}",
        "lora": f"LoRA adapters on d{some}",
        "full": "all weights but the vision tower's",
    }[config.train.method]
    others = _listed(language_name(x) for x in config.data.languages if x != ENGLISH)
    return (
        f"Trained to translate questions from {others} into English: {what}, "
        f"{selection['trainable_fraction']:.1%} of {selection['total_parameters']:,} parameters (modules: "
        f"{selection['modules']}; strategy: {selection['strategy']}). Everything else stayed frozen."
    )


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
