"""Which layers to train: the paper's rule (`msd`, arXiv 2508.18381) and the ones it is compared with.

To add a rule, write a function, enter it under its name in `FIXED` or in `MEASURED`, and add the name to
`SelectionConfig.strategy`. Nothing here imports torch: `plast plan` uses it before a GPU is spent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from plast_train.config import SelectionConfig
from plast_train.data.languages import ENGLISH
from plast_train.errors import UserError
from plast_train.neurons.statistics import Floats, LayerStatistics


@dataclass(frozen=True)
class Selection:
    """The layers to train and what led to them; layers are 0-based and ascending.

    `candidates` and `threshold` are the two steps of the paper's rule. They decide under strategy `msd` and
    are computed for every strategy, so that each result can be compared with the rule's; `threshold` is None
    where there is no candidate to average over. `curve` and `msd` are `[L]`.
    """

    strategy: str
    overlap: Literal["english", "jaccard"]
    selected: tuple[int, ...]
    candidates: tuple[int, ...]
    threshold: float | None
    plateau: float
    curve: Floats
    msd: Floats

    @property
    def is_uninformative(self) -> bool:
        """Whether the paper's rule has singled nothing out: no layer selected, or every candidate."""
        return self.strategy == "msd" and self.selected in {(), self.candidates}


def select_layers(statistics: LayerStatistics, config: SelectionConfig, seed: int) -> Selection:
    """The layers that `config.strategy` selects.

    Raises:
        UserError: a layer or k that the decoder does not have; or, under `msd`, no layer selected or every
            candidate. The message then holds the table and what other rules would select.
    """
    selection = _select(statistics, config, seed)
    if selection.is_uninformative:
        raise UserError(_explain(statistics, config, selection))
    return selection


def fixed_layers(config: SelectionConfig, num_layers: int) -> list[int] | None:
    """The layers, ascending, where they are known before anything is measured; None for other strategies.

    Raises:
        UserError: a layer, or a number of layers, that a decoder of `num_layers` layers does not have.
    """
    outside = [layer for layer in config.layers if not 0 <= layer < num_layers]
    if outside:
        raise UserError(
            f"selection.layers={config.layers}: no layer {outside[0]}; layers are 0 to {num_layers - 1}"
        )
    if config.k is not None and config.k > num_layers:
        raise UserError(
            f"selection.k={config.k}: the decoder has {num_layers} layers; give 1 to {num_layers}"
        )
    rule = FIXED.get(config.strategy)
    return None if rule is None else sorted(rule(config, num_layers))


def usual_number(num_layers: int) -> int:
    """How many of `num_layers` layers would be the paper's share: 5 of 32 (arXiv 2508.18381)."""
    return max(1, round(num_layers * 5 / 32))


def candidate_layers(curve: Floats, tolerance: float) -> tuple[tuple[int, ...], float]:
    """The shallow layers before the overlap curve `[L]` reaches its plateau, and the plateau.

    The plateau counts as reached at the first layer that is at most `tolerance` (in units of the curve)
    below it.
    """
    # The paper says "converging in deep layers" and gives no number. [choice] The median of the deeper half:
    # unlike a mean or maximum it does not follow a single deep layer that differs from the others.
    plateau = float(np.median(curve[len(curve) // 2 :]))
    # At least half of the deeper half is not below its median, so there always is such a layer.
    reached = int(np.argmax(curve >= plateau - tolerance))
    return tuple(range(reached)), plateau


def msd_threshold(msd: Floats, candidates: tuple[int, ...], over: str) -> float | None:
    """Mean MSD over the candidates or over `all_layers`; None over no candidate."""
    values = msd.tolist() if over == "all_layers" else [float(msd[layer]) for layer in candidates]
    return math.fsum(values) / len(values) if values else None


def layer_table(statistics: LayerStatistics, selection: Selection) -> str:
    """One line a layer: overlap with English per language, their mean, MSD, candidate and selected marks."""
    ratios = statistics.ratios(selection.overlap)
    others = [(g, language) for g, language in enumerate(statistics.languages) if language != ENGLISH]
    rows = [["layer", *(language for _, language in others), "mean", "MSD", "candidate", "selected"]]
    for layer in range(statistics.num_layers):
        overlaps = [f"{ratios[layer, g]:.3f}" for g, _ in others]
        marks = ["*" if layer in chosen else "" for chosen in (selection.candidates, selection.selected)]
        rows.append(
            [str(layer), *overlaps, f"{selection.curve[layer]:.3f}", f"{selection.msd[layer]:.4g}", *marks]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    measure = "overlap ratio" if selection.overlap == "english" else "Jaccard index"
    threshold = "none" if selection.threshold is None else f"{selection.threshold:.4g}"
    lines.append(
        f"{measure} with English per language; plateau {selection.plateau:.3f}; MSD threshold {threshold}"
    )
    return "\n".join(line.rstrip() for line in lines)


def _select(statistics: LayerStatistics, config: SelectionConfig, seed: int) -> Selection:
    chosen: Iterable[int] | None = fixed_layers(config, statistics.num_layers)
    if chosen is None:
        chosen = MEASURED[config.strategy](statistics, config, seed)
    msd, curve = statistics.msd(config.reference), statistics.curve(config.overlap)
    candidates, plateau = candidate_layers(curve, config.tolerance)
    threshold = msd_threshold(msd, candidates, config.threshold)
    return Selection(
        config.strategy, config.overlap, tuple(sorted(chosen)), candidates, threshold, plateau, curve, msd
    )


def _k(config: SelectionConfig) -> int:
    assert config.k is not None, "SelectionConfig lets no strategy that takes a number go without k"
    return config.k


# Rules that need the number of layers alone.
FIXED: dict[str, Callable[[SelectionConfig, int], Iterable[int]]] = {
    "layers": lambda config, _: config.layers,
    "all": lambda _, num_layers: range(num_layers),
    "shallowest": lambda config, _: range(_k(config)),
    "middle": lambda config, num_layers: range(
        (num_layers - _k(config)) // 2, (num_layers - _k(config)) // 2 + _k(config)
    ),
    "deepest": lambda config, num_layers: range(num_layers - _k(config), num_layers),
}


def _candidates_above_threshold(
    statistics: LayerStatistics, config: SelectionConfig, _seed: int
) -> Iterable[int]:
    """The paper's rule: the candidates whose MSD is strictly above the mean (arXiv 2508.18381)."""
    msd = statistics.msd(config.reference)
    candidates, _ = candidate_layers(statistics.curve(config.overlap), config.tolerance)
    threshold = msd_threshold(msd, candidates, config.threshold)
    return [layer for layer in candidates if threshold is not None and msd[layer] > threshold]


def _highest_msd(statistics: LayerStatistics, config: SelectionConfig, _seed: int) -> Iterable[int]:
    """The k layers of highest MSD; of equal ones the shallower.

    [choice] Among all layers, not only the candidates: this is MSD without the overlap step, and any k up to
    the number of layers has an answer.
    """
    msd = statistics.msd(config.reference)
    return sorted(range(statistics.num_layers), key=lambda layer: (-msd[layer], layer))[: _k(config)]


# Rules that need the statistics or the seed.
MEASURED: dict[str, Callable[[LayerStatistics, SelectionConfig, int], Iterable[int]]] = {
    "msd": _candidates_above_threshold,
    "top_k": _highest_msd,
    "random": lambda statistics, config, seed: random.Random(seed).sample(
        range(statistics.num_layers), _k(config)
    ),
}


def _explain(statistics: LayerStatistics, config: SelectionConfig, selection: Selection) -> str:
    """Why the paper's rule selects nothing of use, and what neighbouring rules would select."""
    if not selection.candidates:
        why = "no layer selected: the overlap curve is at its plateau from layer 0, so there is no candidate"
    elif not selection.selected:
        why = f"no layer selected: no candidate's MSD exceeds the threshold {selection.threshold:.4g}"
    else:
        why = "every candidate selected: all of them exceed the threshold, so it singles none out"
    lines = [f"{why}.", "", layer_table(statistics, selection), "", "What other rules would select:"]
    changes: list[dict[str, Any]] = [
        {"threshold": "all_layers" if config.threshold == "candidates" else "candidates"},
        {"reference": "english" if config.reference == "mean" else "mean"},
        {"overlap": "jaccard" if config.overlap == "english" else "english"},
        {"tolerance": config.tolerance / 2},
        {"tolerance": config.tolerance / 5},
        {"strategy": "top_k", "k": usual_number(statistics.num_layers)},
    ]
    for change in changes:
        other = _select(statistics, config.model_copy(update=change), seed=0)
        names = " ".join(
            f"selection.{key}={value:g}" if isinstance(value, float) else f"selection.{key}={value}"
            for key, value in change.items()
        )
        verdict = " (refused as well)" if other.is_uninformative else ""
        lines.append(f"  {names}: {list(other.selected) or 'none'}{verdict}")
    lines.append(
        "Choose one of these, or probe more records (probe.records), or check whether the base model"
    )
    lines.append("knows the languages at all: if it answers in none of them, no layer tells them apart.")
    return "\n".join(lines)
