"""Whether a change between two models answering the same questions is more than chance. Pure functions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 10_000
LEVEL = 0.95
_AT_A_TIME = 500  # resamples whose draws are in memory together


def mcnemar(only_base: int, only_trained: int) -> float:
    """McNemar's exact two-sided p: were both models alike, each question that just one of them has right
    would be either's with probability 1/2 (McNemar 1947, Psychometrika 12, 153-157)."""
    differing = only_base + only_trained
    return float(stats.binomtest(only_base, differing, 0.5).pvalue) if differing else 1.0


def differing_units(gains: np.ndarray, counts: np.ndarray) -> tuple[int, int]:
    """How many units the one model has more right than the other, and the reverse: what `mcnemar` takes.

    `gains` and `counts` are those of `interval`. In the mean over several languages a language's share does
    not depend on its number of rows.
    """
    net = (gains / counts.sum(1, keepdims=True)).sum(0).round(12)
    return int((net < 0).sum()), int((net > 0).sum())


def holm(values: Sequence[float]) -> list[float]:
    """The p values, in their order, corrected for their number (Holm 1979, Scand. J. Statist. 6, 65-70): the
    k-th smallest of m times m - k + 1, never below one smaller than it, at most 1."""
    corrected = [1.0] * len(values)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[at]))
        corrected[at] = highest
    return corrected


def interval(gains: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float] | None:
    """Bootstrap interval (percentiles, 95 %) of the mean over languages of `sum of gains / sum of counts`.

    Both are `[languages, units]`: how many more of a unit's rows the trained model has right, and how many
    rows the unit has (0 where a language lacks it). Units are drawn with replacement, each with all its rows
    in all languages (Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13; paired by unit).
    None where one unit leaves nothing to draw from, or so few that draws miss a language.
    """
    languages, units = gains.shape
    if units < 2:
        return None

    def mean_gain(*drawn: np.ndarray, axis: int) -> Any:
        sums = [each.sum(axis=axis) for each in drawn]
        return np.mean([g / n for g, n in zip(sums[:languages], sums[languages:], strict=True)], axis=0)

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (*gains.astype(np.float64), *counts.astype(np.float64)),
            mean_gain,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=_AT_A_TIME,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if np.isfinite([low, high]).all() else None
