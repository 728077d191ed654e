"""Figures of the analyses over the decoder's layers, by file name, from what an analysis's JSON holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plast_train.data.languages import ENGLISH
from plast_train.figures.plots import (
    PASSED_OVER,
    SELECTED,
    WIDTH,
    dress_layers,
    language_line,
    legend,
    line_of,
    mark_selected,
)
from plast_train.scoring.accuracies import BASE, TRAINED

Tree = Mapping[str, Any]
HATCHES = ("", "////", "....", "xxxx")
TITLES = {BASE: "base model", TRAINED: "trained model"}


def plot_neurons(tree: Tree) -> dict[str, Figure]:
    """Specific neurons per layer as bars stacked by language; below them MSD, selected layers coloured."""
    figure, (bars, stems) = _two_panels(tree["layers"], 3.4, heights=(3, 2))
    layers = np.arange(tree["layers"])
    bottom = np.zeros(tree["layers"])
    for i, language in enumerate(tree["languages"]):
        counts = np.asarray(tree["count"][language])
        bars.bar(
            layers,
            counts,
            bottom=bottom,
            width=0.8,
            color=language_line(language, tree["languages"])["color"],
            hatch=HATCHES[i % len(HATCHES)],
            edgecolor="white",
            linewidth=0.3,
            label=language,
        )
        bottom += counts
    bars.set_ylabel("language-specific\nneurons (number)")
    colours = [SELECTED if layer in tree["selected_layers"] else PASSED_OVER for layer in layers]
    stems.vlines(layers, 0, tree["msd"], color=colours, linewidth=1.6)
    stems.scatter(layers, tree["msd"], s=12, color=colours)
    stems.set_ylabel("MSD\n(neurons²)")
    stems.set_ylim(bottom=0)
    mark_selected(stems, tree["selected_layers"])
    _joint_legend(figure, (bars, stems), 4)
    return {"neurons": figure}


def plot_stability(tree: Tree) -> dict[str, Figure]:
    """The mean overlap with English and MSD of the base and of each checkpoint."""
    figure, (overlap, msd) = _two_panels(tree["layers"], 3.6)
    for i, model in enumerate(tree["models"]):
        overlap.plot(model["curve"], label=model["name"], **line_of(i))
        msd.plot(model["msd"], **line_of(i))
    ratio = "overlap" if tree["overlap_kind"] == "english" else "Jaccard index"
    overlap.set_ylabel(f"mean {ratio}\nwith English")
    msd.set_ylabel("MSD (neurons²)")
    msd.set_ylim(bottom=0)
    for axes in (overlap, msd):
        mark_selected(axes, tree["selected_layers"])
    _joint_legend(figure, (overlap,), 4)
    return {"stability": figure}


def plot_representation(tree: Tree) -> dict[str, Figure]:
    """For each position its cosines with English: languages before (dashed) and after training, and the mean
    of the control in both."""
    figures = {}
    for position in tree["positions"]:
        figure, panels = _two_panels(tree["layers"], 3.8)
        for axes, name in zip(panels, (BASE, TRAINED), strict=True):
            cosines = tree["cosine"][name][position]
            for language, curve in cosines["parallel"].items():
                axes.plot(curve, label=language, **language_line(language, tree["languages"]))
            control = [fmean(column) for column in zip(*cosines["control"].values(), strict=True)]
            axes.plot(control, color="black", linestyle=":", linewidth=1.3, label="other question")
            axes.set_ylabel(f"{TITLES[name]}:\ncosine with English")
        limits = [axes.get_ylim() for axes in panels]
        for axes in panels:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
            mark_selected(axes, tree["selected_layers"])
        _joint_legend(figure, panels[:1], 4)
        figures[f"representation-{position}"] = figure
    return figures


def plot_knockout(tree: Tree) -> dict[str, Figure]:
    """For each benchmark and model the accuracy that each language loses with each layer skipped."""
    figures = {}
    for benchmark in tree["benchmarks"].values():
        figure, panels = _two_panels(tree["layers"], 3.8)
        items = len(benchmark["items"])
        for axes, model in zip(panels, (BASE, TRAINED), strict=True):
            for language in benchmark["languages"]:
                lost = [
                    100 * (cells[language]["lost"] - cells[language]["gained"]) / items
                    for cells in benchmark["skipped"][model].values()
                ]
                axes.plot(lost, label=language, **language_line(language, benchmark["languages"]))
            axes.axhline(0, color="black", linewidth=0.6)
            axes.set_ylabel(f"{TITLES[model]}:\nloss (points of accuracy)")
            mark_selected(axes, tree["selected_layers"])
        panels[-1].set_xlabel(f"layer skipped ({items} items a language)")
        _joint_legend(figure, panels[:1], 4)
        figures[f"knockout-{benchmark['figure']}"] = figure
    return figures


def plot_attention(tree: Tree) -> dict[str, Figure]:
    """The share of the heat inside the box of the object asked about, before and after, English and the mean
    of the others."""
    mass = tree["mass"]
    if mass is None:
        return {}
    layers = len(next(iter(mass[BASE].values())))
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    axes = figure.add_subplot()
    dress_layers(axes, layers)
    groups = {"English": [ENGLISH], "others": [g for g in mass[BASE] if g != ENGLISH]}
    for i, (label, languages) in enumerate(groups.items()):
        for name, style in ((BASE, "--"), (TRAINED, "-")):
            columns = [
                [mass[name][g][layer] for g in languages if mass[name][g][layer] is not None]
                for layer in range(layers)
            ]
            means = [100 * fmean(column) if column else np.nan for column in columns]
            when = "before" if name == BASE else "after"
            axes.plot(means, label=f"{label}, {when}", **{**line_of(i), "linestyle": style})
    axes.axhline(100 * mass["area"], color="black", linestyle=":", linewidth=1.0, label="box's area")
    axes.set_ylabel("heat inside the box (%)")
    axes.set_ylim(bottom=0)
    legend(figure, axes, columns=3)
    return {"attention-mass": figure}


def _two_panels(
    layers: int, height: float, heights: tuple[int, int] = (1, 1)
) -> tuple[Figure, tuple[Axes, Axes]]:
    """One above the other, of one column's width; the layers stand below the lower one."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    for axes in (upper, lower):
        dress_layers(axes, layers)
    upper.set_xlabel("")
    return figure, (upper, lower)


def _joint_legend(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """One legend above the figure for what the panels label; a label that both have stands once."""
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.0,
        handletextpad=0.5,
    )
