"""Figures for a paper's column, PNG and SVG: overlap and MSD per layer, the training.

Colours are Okabe and Ito's, told apart by the colour-blind as well; each language also has its own marker.
The same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plast_train.data.languages import ENGLISH
from plast_train.run_folder import publish_bytes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p")
STYLES = ("-", "--", ":", "-.")
SELECTED, PASSED_OVER, SHADE = "#882255", "#7F7F7F", "#DCE8F2"
WIDTH = 3.35  # inches: one column of a two-column paper
LOG_SCALE_FROM = 30.0  # the largest MSD over the threshold's from which a linear axis hides the small ones

STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "plast",
}


def plot_layers(summary: Mapping[str, Any], selection: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes `overlap` and `msd`, each `.png` and `.svg`, into `folder` from `summary.json` and
    `selection.json`. Returns the four paths."""
    with matplotlib.rc_context(STYLE):
        return [
            *save(overlap_figure(summary, selection), folder / "overlap"),
            *save(msd_figure(summary, selection), folder / "msd"),
        ]


def overlap_figure(summary: Mapping[str, Any], selection: Mapping[str, Any]) -> Figure:
    """One line a language over the layers and their mean; candidates shaded, the plateau of the mean dotted,
    triangles at the selected layers."""
    kind = selection["options"]["overlap"]
    curves = summary["overlap" if kind == "english" else "jaccard"]
    languages = [language for language in summary["languages"] if language != "en"]
    figure, axes = layer_axes(summary["layers"], 2.7)
    for language in languages:
        axes.plot(curves[language], label=language, **language_line(language, languages))
    axes.plot(selection["curve"], color="black", linewidth=1.5, label="mean")
    axes.axhline(selection["plateau"], color="black", linewidth=0.8, linestyle=":", label="plateau")
    axes.set_ylabel("overlap with English" if kind == "english" else "Jaccard index with English")
    shade(axes, selection["candidates"])
    mark_selected(axes, selection["selected_layers"])
    legend(figure, axes, columns=4)
    return figure


def msd_figure(summary: Mapping[str, Any], selection: Mapping[str, Any]) -> Figure:
    """One stem a layer; the selected ones coloured, the threshold dashed, candidates shaded."""
    msd, threshold = summary["msd"], selection["threshold"]
    selected = selection["selected_layers"]
    figure, axes = layer_axes(summary["layers"], 2.4)
    log = threshold is not None and max(msd) > LOG_SCALE_FROM * threshold and min(msd) > 0
    floor = min(msd) / 2 if log else 0.0
    groups: dict[str, tuple[list[int], str, str]] = {
        "selected": (list(selected), SELECTED, "o"),
        "not selected": ([i for i in range(len(msd)) if i not in selected], PASSED_OVER, "s"),
    }
    for label, (layers, colour, marker) in groups.items():
        if layers:
            heights = [msd[i] for i in layers]
            axes.vlines(layers, floor, heights, color=colour, linewidth=1.6)
            axes.plot(layers, heights, marker, color=colour, markersize=4, label=label)
    if threshold is not None:
        over = selection["options"]["threshold"].replace("_", " ")
        axes.axhline(threshold, color="black", linewidth=0.9, linestyle="--", label=f"mean over {over}")
    axes.set_yscale("log" if log else "linear")
    axes.set_ylim(bottom=floor)
    axes.set_ylabel("MSD (neurons²" + (", log scale)" if log else ")"))
    shade(axes, selection["candidates"])
    legend(figure, axes, columns=2)
    return figure


def plot_training(metrics: Sequence[Mapping[str, Any]], stem: Path) -> list[Path]:
    """Writes and returns `stem.png` and `stem.svg`: the loss of each step and the validation loss, the
    mean over languages, where it was measured. `metrics` are the lines of metrics.jsonl."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([m["step"] for m in metrics], [m["loss"] for m in metrics], color="#56B4E9", linewidth=0.9)
        axes.lines[0].set_label("training")
        measured = [m for m in metrics if m.get("validation_loss")]
        if measured:
            means = [fmean(m["validation_loss"].values()) for m in measured]
            steps = [m["step"] for m in measured]
            axes.plot(steps, means, "s-", color="#D55E00", markersize=3.5, linewidth=1.2, label="held back")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats a token)")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", linewidth=0.3, color="#CCCCCC")
        legend(figure, axes, columns=2)
        return save(figure, stem)


def line_of(number: int) -> dict[str, Any]:
    """Line style, colour and marker of the `number`-th line of a figure."""
    return {
        "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 2.8,
        "linewidth": 0.8,
    }


def language_line(language: str, languages: Sequence[str]) -> dict[str, Any]:
    """How the language's line is drawn in every figure of a run; English is black."""
    if language == ENGLISH:
        return line_of(0) | {"color": "black", "marker": "x", "linestyle": "-"}
    return line_of([other for other in languages if other != ENGLISH].index(language))


def layer_axes(layers: int, height: float) -> tuple[Figure, Axes]:
    """A figure of one column's width and `height` inches whose x axis are the decoder's layers."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    dress_layers(axes, layers)
    return figure, axes


def dress_layers(axes: Axes, layers: int) -> None:
    axes.set_xlabel("decoder layer")
    axes.set_xlim(-0.6, layers - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    axes.grid(axis="y", linewidth=0.3, color="#CCCCCC")
    axes.set_axisbelow(True)


def shade(axes: Axes, candidates: Sequence[int]) -> None:
    if candidates:
        axes.axvspan(-0.6, max(candidates) + 0.5, color=SHADE, zorder=0, label="candidates")


def mark_selected(axes: Axes, selected: Sequence[int]) -> None:
    """Triangles standing on the layer axis, in a band made free of data for them."""
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.08 * (high - low), high)
    axes.plot(
        list(selected),
        [0.035] * len(selected),
        "^",
        color=SELECTED,
        markersize=4.5,
        transform=axes.get_xaxis_transform(),
        label="selected",
        linestyle="none",
    )


def legend(figure: Figure, axes: Axes, columns: int) -> None:
    """The axes' legend, above the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.0,
        handletextpad=0.5,
    )


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes and returns `stem.png` and `stem.svg`."""
    png, svg = (stem.with_name(stem.name + ending) for ending in (".png", ".svg"))
    for path, options in (
        (png, {"dpi": 300, "metadata": {"Software": None}}),
        (svg, {"metadata": {"Date": None}}),
    ):
        picture = BytesIO()
        figure.savefig(picture, format=path.suffix[1:], **options)
        publish_bytes(path, picture.getvalue())
    return [png, svg]
