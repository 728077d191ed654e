"""The report's figure of accuracies: each language before and after training, and its change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plast_train.figures.plots import COLOURS, PASSED_OVER, STYLE, WIDTH, save
from plast_train.report.results import Result

# Score → what the legend calls it, its colour, its marker, and how far from a language's line it is drawn.
_SCORES = {
    "generated": ("generated answers", COLOURS[0], "o", -0.14),
    "option_logits": ("option logits", COLOURS[1], "s", 0.14),
}


def plot_accuracies(result: Result, stem: Path) -> list[Path]:
    """Writes and returns `stem.png` and `stem.svg`: a line for each language, the mean of the others last."""
    rows = result.accuracies()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * WIDTH, 0.85 + 0.27 * len(rows)), layout="constrained")
        levels, changes = figure.subplots(1, 2, sharey=True)
        for i, score in enumerate(_SCORES):
            pairs = [row[2 * i : 2 * i + 2] for row in rows.values()]
            if not any(math.isnan(value) for pair in pairs for value in pair):  # open questions: no logits
                _draw(levels, changes, pairs, [result.comparison(label, score) for label in rows], score)
        levels.set_yticks(range(len(rows)), list(rows))
        levels.set_ylim(len(rows) - 0.5, -0.5)
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


def _draw(
    levels: Axes,
    changes: Axes,
    pairs: Sequence[Sequence[float]],
    comparisons: Sequence[Mapping[str, Any] | None],
    score: str,
) -> None:
    """One score of all languages: from a hollow marker, the base, to a filled one, and the change beside."""
    name, colour, marker, shift = _SCORES[score]
    heights = [i + shift for i in range(len(pairs))]
    before, after = ([100 * pair[i] for pair in pairs] for i in (0, 1))
    dots: dict[str, Any] = {"marker": marker, "color": colour, "markersize": 4, "linestyle": "none"}
    levels.hlines(heights, before, after, color=PASSED_OVER, linewidth=1.0, zorder=1)
    levels.plot(before, heights, markerfacecolor="white", **dots)
    levels.plot(after, heights, **dots)
    for height, comparison in zip(heights, comparisons, strict=True):
        if comparison is not None and comparison["low"] is not None:
            ends = 100 * comparison["low"], 100 * comparison["high"]
            changes.hlines(height, *ends, color=colour, linewidth=1.3)
    changes.plot([100 * (a - b) for b, a in pairs], heights, label=name, **dots)
