"""The report's figure of accuracies: where each language stood and stands, and the change, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plast_train.figures.plots import COLOURS, PASSED_OVER, STYLE, WIDTH, save

if TYPE_CHECKING:
    from plast_train.report.accuracy import Result

_SCORES = {
    "generated": ("generated answers", COLOURS[0], "o", -0.14),
    "option_logits": ("option logits", COLOURS[1], "s", 0.14),
}


def plot_accuracies(result: Result, stem: Path) -> list[Path]:
    """Writes and returns `stem.png` and `stem.svg`: a line a language, the mean of the others last."""
    shown = result.accuracies()
    labels = list(shown)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH, 0.85 + 0.27 * len(labels)), layout="constrained")
        levels, changes = figure.subplots(1, 2, sharey=True)
        for i, (score, style) in enumerate(_SCORES.items()):
            pairs = [row[2 * i : 2 * i + 2] for row in shown.values()]
            if not any(math.isnan(value) for pair in pairs for value in pair):
                _levels(levels, pairs, style)
                _changes(changes, result, labels, pairs, score, style)
        levels.set_yticks(range(len(labels)), labels)
        levels.set_ylim(len(labels) - 0.5, -0.5)
        levels.set_xlabel("accuracy (%): base hollow, trained filled")
        changes.axvline(0, color="black", linewidth=0.6)
        changes.set_xlabel("change (percentage points), 95 % interval")
        for axes in (levels, changes):
            axes.grid(axis="x", linewidth=0.3, color="#CCCCCC")
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        handles, names = changes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
        return save(figure, stem)


def _levels(axes: Axes, pairs: Sequence[Sequence[float]], style: tuple[str, str, str, float]) -> None:
    """From a hollow marker, the base, to a filled one."""
    _, colour, marker, shift = style
    heights = [i + shift for i in range(len(pairs))]
    before, after = ([100 * pair[i] for pair in pairs] for i in (0, 1))
    axes.hlines(heights, before, after, color=PASSED_OVER, linewidth=1.0, zorder=1)
    axes.plot(before, heights, marker, color=colour, markerfacecolor="white", markersize=4, linestyle="none")
    axes.plot(after, heights, marker, color=colour, markersize=4, linestyle="none")


def _changes(
    axes: Axes,
    result: Result,
    labels: Sequence[str],
    pairs: Sequence[Sequence[float]],
    score: str,
    style: tuple[str, str, str, float],
) -> None:
    name, colour, marker, shift = style
    heights = [i + shift for i in range(len(labels))]
    for height, label in zip(heights, labels, strict=True):
        comparison = result.comparison(label, score)
        if comparison is not None and comparison["low"] is not None:
            axes.hlines(
                height, 100 * comparison["low"], 100 * comparison["high"], color=colour, linewidth=1.3
            )
    values = [100 * (after - before) for before, after in pairs]
    axes.plot(values, heights, marker, color=colour, markersize=4, linestyle="none", label=name)
