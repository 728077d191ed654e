"""Which layers to train: the paper's rule and the ones it is compared with (arXiv 2508.18381).

`top_k` takes the k layers of highest MSD among all layers, not only among the candidates [choice]: it is MSD
without the overlap step, and any k up to the number of layers has an answer.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np

from plast_train.config import SelectionConfig
from plast_train.data.languages import ENGLISH
from plast_train.errors import UserError
from plast_train.neurons.layers import fixed_layers, usual_number
from plast_train.neurons.statistics import Floats, LayerStatistics


@dataclass(frozen=True)
class Selection:
    """The layers to train and what led to them; layers are 0-based and ascending.

    `candidates` and `threshold` are the two steps of the paper's rule. They decide under strategy `msd` and
    are computed for every strategy, so that each result can be held against the rule; `threshold` is None
    where there is no candidate to average over.
    """

    strategy: str
    overlap: Literal["english", "jaccard"]
    selected: tuple[int, ...]
    candidates: tuple[int, ...]
    threshold: float | None
    plateau: float
    curve: Floats
    msd: Floats


def select_layers(statistics: LayerStatistics, config: SelectionConfig, seed: int) -> Selection:
    """The layers that `config.strategy` selects.

    Raises:
        UserError: a layer or k that the decoder does not have; or, under `msd`, no layer selected or every
            candidate. The message then holds the table and what other rules would choose.
    """
    selection = _weigh(statistics, config, _by_strategy(statistics, config, seed))
    if config.strategy == "msd" and selection.selected in {(), selection.candidates}:
        raise UserError(_nothing_stands_out(statistics, config, selection))
    return selection


def candidate_layers(curve: Floats, tolerance: float) -> tuple[tuple[int, ...], float]:
    """The shallow layers before the overlap curve reaches its plateau, and the plateau.

    The plateau is the median of the deeper half (layers L//2 and up); it counts as reached at the first
    layer that is at most `tolerance` (in units of the curve) below it.
    """
    plateau = float(np.median(curve[len(curve) // 2 :]))
    reached = int(np.argmax(curve >= plateau - tolerance))  # at least half of the deeper half reaches it
    return tuple(range(reached)), plateau


def msd_threshold(msd: Floats, candidates: tuple[int, ...], over: str) -> float | None:
    """Mean MSD over the candidates or over `all_layers`; None over no candidate."""
    values = msd.tolist() if over == "all_layers" else [float(msd[layer]) for layer in candidates]
    return math.fsum(values) / len(values) if values else None


def layer_table(statistics: LayerStatistics, selection: Selection) -> str:
    """One line a layer: overlap with English per language, their mean, MSD, candidate and selected marks."""
    ratios = statistics.ratios(selection.overlap)
    others = [(g, language) for g, language in enumerate(statistics.languages) if language != ENGLISH]
    head = ["layer", *(language for _, language in others), "mean", "MSD", "candidate", "selected"]
    rows = [head]
    for layer in range(statistics.layers):
        overlaps = [f"{ratios[layer, g]:.3f}" for g, _ in others]
        marks = ["*" if layer in chosen else "" for chosen in (selection.candidates, selection.selected)]
        rows.append(
            [str(layer), *overlaps, f"{selection.curve[layer]:.3f}", f"{selection.msd[layer]:.4g}", *marks]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    measure = "overlap ratio" if selection.overlap == "english" else "Jaccard index"
    threshold = "none" if selection.threshold is None else f"{selection.threshold:.4g}"
    lines.append(
        f"{measure} with English per language; plateau {selection.plateau:.3f}; MSD threshold {threshold}"
    )
    return "\n".join(line.rstrip() for line in lines)


def _weigh(statistics: LayerStatistics, config: SelectionConfig, chosen: list[int] | None) -> Selection:
    """The paper's two steps; `chosen` overrules what they select."""
    msd, curve = statistics.msd(config.reference), statistics.curve(config.overlap)
    candidates, plateau = candidate_layers(curve, config.tolerance)
    threshold = msd_threshold(msd, candidates, config.threshold)
    if chosen is None:
        chosen = [layer for layer in candidates if threshold is not None and msd[layer] > threshold]
    return Selection(
        config.strategy, config.overlap, tuple(sorted(chosen)), candidates, threshold, plateau, curve, msd
    )


def _by_strategy(statistics: LayerStatistics, config: SelectionConfig, seed: int) -> list[int] | None:
    """The layers of a strategy that does not need the paper's rule; None for `msd`."""
    layers = statistics.layers
    if config.strategy == "msd":
        return None
    fixed = fixed_layers(config, layers)
    if fixed is not None:
        return fixed
    assert config.k is not None  # so says the config's own check
    if config.strategy == "random":
        return random.Random(seed).sample(range(layers), config.k)
    msd = statistics.msd(config.reference)
    return sorted(range(layers), key=lambda layer: (-msd[layer], layer))[: config.k]


def _nothing_stands_out(statistics: LayerStatistics, config: SelectionConfig, selection: Selection) -> str:
    if not selection.candidates:
        why = "no layer selected: the overlap curve is at its plateau from layer 0, so there is no candidate"
    elif not selection.selected:
        why = f"no layer selected: no candidate's MSD exceeds the threshold {selection.threshold:.4g}"
    else:
        why = "every candidate selected: all of them exceed the threshold, so it tells nothing apart"
    lines = [f"{why}.", "", layer_table(statistics, selection), "", "What other rules would choose:"]
    for change in (
        {"threshold": "all_layers" if config.threshold == "candidates" else "candidates"},
        {"reference": "english" if config.reference == "mean" else "mean"},
        {"overlap": "jaccard" if config.overlap == "english" else "english"},
        {"tolerance": config.tolerance / 2},
        {"tolerance": config.tolerance / 5},
    ):
        other = _weigh(statistics, config.model_copy(update=change), None)
        names = " ".join(
            f"selection.{key}={value:g}" if key == "tolerance" else f"selection.{key}={value}"
            for key, value in change.items()
        )
        verdict = "" if other.selected not in {(), other.candidates} else " (refused as well)"
        lines.append(f"  {names}: {list(other.selected) or 'none'}{verdict}")
    k = usual_number(statistics.layers)
    by_k = {"k": k, "strategy": "top_k"}
    top = _by_strategy(statistics, config.model_copy(update=by_k), 0)
    lines.append(f"  selection.strategy=top_k selection.k={k}: {sorted(top or [])}")
    lines.append("Choose one of these, or probe more records (probe.records), or look whether the base model")
    lines.append("knows the languages at all: where it answers none of them, no layer tells them apart.")
    return "\n".join(lines)
