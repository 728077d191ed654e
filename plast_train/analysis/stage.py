"""The stage `analyse`: what training changed inside the model, and what each layer is for.

Each analysis leaves `analysis/NAME.json` and its figures. One whose file was made from the same settings and
inputs is kept, so a stopped stage resumes with the analysis that it was stopped in. A further analysis is a
module of its own and an entry of `ANALYSES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from plast_train.analysis.attention import attention
from plast_train.analysis.knockout import knockout
from plast_train.analysis.layer_plots import (
    plot_attention,
    plot_knockout,
    plot_neurons,
    plot_representation,
    plot_stability,
)
from plast_train.analysis.representation import representation
from plast_train.analysis.specific_neurons import neurons
from plast_train.analysis.stability import stability
from plast_train.context import Context
from plast_train.figures.plots import STYLE, save
from plast_train.run_folder import publish_text, read_json, to_json
from plast_train.stages import inputs_of, is_benchmark, settings_of

MADE_FROM = "made_from"


@dataclass(frozen=True)
class Analysis:
    """`compute` is called by every rank and returns plain JSON, the same on each; `plot` draws it, figures by
    file name, none where there is nothing to draw. The result depends on `settings` (prefixes of dotted keys)
    and `reads` (names of the stage's inputs; `*` for the benchmarks). One that needs `whole_weights` on each
    rank is left out where ZeRO-3 spreads them."""

    compute: Callable[[Context], dict[str, Any]]
    plot: Callable[[dict[str, Any]], dict[str, Figure]]
    settings: tuple[str, ...]
    reads: tuple[str, ...]
    whole_weights: bool = True


_PROBE = (
    "seed",
    "model.dtype",
    "data.languages",
    "probe",
    "selection",
    "analyse.records",
    "analyse.tokens_per_row",
)
_MODEL = ("base", "records", "select", "export")
ANALYSES = {
    "neurons": Analysis(
        neurons,
        plot_neurons,
        ("data.languages", "analyse.neuron"),
        ("collect", "select"),
        whole_weights=False,
    ),
    "stability": Analysis(stability, plot_stability, _PROBE, _MODEL, whole_weights=False),
    "representation": Analysis(representation, plot_representation, _PROBE, _MODEL, whole_weights=False),
    "knockout": Analysis(
        knockout,
        plot_knockout,
        (
            "seed",
            "model.dtype",
            "evaluate.localised_instruction",
            "analyse.items",
            "analyse.tokens_per_row",
        ),
        ("base", "select", "export", "*"),
        whole_weights=False,
    ),
    "attention": Analysis(
        attention,
        plot_attention,
        (
            "seed",
            "model.dtype",
            "data.languages",
            "train.validation_records",
            "evaluate.max_new_tokens",
            "analyse.attention",
            "analyse.pictures",
        ),
        _MODEL,
    ),
}


def analyse(context: Context) -> list[Path]:
    """Writes `analysis/NAME.json` and figures for each of `analyse.analyses`; returns the JSON files.

    Raises:
        Interrupted: a stop signal came; finished analyses are kept.
        UserError: see the analyses.
    """
    made = []
    for name in context.config.analyse.analyses:
        path = context.run.analysis / f"{name}.json"
        if _analyse(context, name, path):
            made.append(path)
    return made


def _analyse(context: Context, name: str, path: Path) -> bool:
    """Whether the analysis is there, made now or before."""
    analysis, ranks = ANALYSES[name], context.ranks
    identity = ranks.on_first(lambda: _identity(context, analysis))
    if ranks.on_first(lambda: path.exists() and read_json(path).get(MADE_FROM) == identity):
        ranks.say(f"analyse: {name} done before, kept")
        return True
    if context.partitioned and analysis.whole_weights:
        ranks.say(
            f"analyse: {name} is left out: it needs the whole weights on each rank, and "
            f"train.deepspeed={context.config.train.deepspeed} spreads them over the ranks; "
            "`plast analyse` with the same arguments and train.deepspeed=zero1 makes it where they fit"
        )
        ranks.on_first(lambda: path.unlink(missing_ok=True))  # of other settings
        return False
    tree = analysis.compute(context)

    def publish() -> None:
        with matplotlib.rc_context(STYLE):
            for stem, figure in analysis.plot(tree).items():
                save(figure, context.run.analysis / stem)
        publish_text(path, to_json(tree | {MADE_FROM: identity}))

    ranks.on_first(publish)
    return True


def _identity(context: Context, analysis: Analysis) -> str:
    """SHA-256 over what the analysis depends on."""
    settings = settings_of("analyse", context.config)
    options = settings.pop("analyse")
    settings |= {f"analyse.{key}": value for key, value in options.items()}
    inputs = inputs_of("analyse", context.config, context.run, context.base)
    assert inputs is not None, "the stage ran before the stages it needs"
    wanted = {*analysis.reads, *(filter(is_benchmark, inputs) if "*" in analysis.reads else ())}
    chosen = [
        {key: value for key, value in settings.items() if key.startswith(analysis.settings)},
        {key: value for key, value in inputs.items() if key in wanted},
    ]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
