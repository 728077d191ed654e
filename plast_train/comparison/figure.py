"""The figure of a comparison: how each run or variant changed English and the others, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plast_train.comparison.changes import Change, Group, benchmarks_of, changes
from plast_train.data.languages import ENGLISH
from plast_train.figures.plots import COLOURS, PASSED_OVER, SELECTED, STYLE, WIDTH, legend, save
from plast_train.scoring.accuracies import MEAN


def plot_comparison(groups: Sequence[Group], stem: Path) -> list[Path]:
    """Writes and returns `stem.png` and `stem.svg`: a row of panels for each benchmark, the change of the
    mean of the others and of English in points; the first of the groups in another colour."""
    shown = [group for group in groups if group.outcomes]
    names = benchmarks_of(shown)
    with matplotlib.rc_context(STYLE):
        height = 0.6 + len(names) * (0.55 + 0.17 * len(shown))
        figure = Figure(figsize=(2 * WIDTH, height), layout="constrained")
        panels = figure.subplots(len(names), 2, sharey=True, squeeze=False)
        for row, benchmark in zip(panels, names, strict=True):
            found = {group.name: changes(group, benchmark, "generated") for group in shown}
            for axes, language in zip(row, (MEAN, ENGLISH), strict=True):
                _panel(axes, {name: table.get(language) for name, table in found.items()})
                axes.set_title(f"{benchmark}: {'English' if language == ENGLISH else language}", fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("change in accuracy (percentage points)")
        legend(figure, panels[0][0], columns=2)
        return save(figure, stem)


def _panel(axes: Axes, found: Mapping[str, Change | None]) -> None:
    """A dot a line, its 95 % interval, and a tick for each seed where there are several."""
    for height, change in enumerate(found.values()):
        if change is None:
            continue
        colour = SELECTED if height == 0 else COLOURS[0]
        if change.interval is not None:
            low, high = (100 * end for end in change.interval)
            axes.hlines(height, low, high, color=colour, linewidth=1.4, label=_once(axes, "95 % interval"))
        if len(change.by_run) > 1:
            seeds = [100 * value for value in change.by_run]
            axes.plot(
                seeds,
                [height] * len(seeds),
                "|",
                color=PASSED_OVER,
                markersize=6,
                label=_once(axes, "a seed"),
            )
        axes.plot([100 * change.change], [height], "o", color=colour, markersize=4)
    axes.axvline(0.0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.3, color="#CCCCCC")


def _once(axes: Axes, label: str) -> str:
    """The label, unless the axes have it already."""
    return label if label not in axes.get_legend_handles_labels()[1] else "_"
