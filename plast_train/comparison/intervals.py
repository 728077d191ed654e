"""Bootstrap intervals of accuracies and their changes. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 5_000
LEVEL = 0.95
_AT_A_TIME = 200  # resamples whose draws are in memory together


def mean_over_units(values: Floats) -> float:
    """The mean over languages of each language's mean over units. `values` are `[languages, units]`, NaN
    where a language lacks the unit."""
    return float(np.nanmean(values, axis=1).mean())


def bootstrap(
    values: Floats, groups: Sequence[Sequence[int]], seed: int = 0
) -> list[tuple[float, float] | None]:
    """For each group of languages (row numbers) the 95 % interval (percentiles) of its `mean_over_units`.

    Units are drawn with replacement, each with its values in all languages: parallel questions are right or
    wrong together (Efron & Tibshirani 1993, ch. 13). None where fewer than two units leave nothing to draw,
    or so few that a draw misses a language.
    """
    units = values.shape[1]
    if units < 2:
        return [None] * len(groups)
    rng = np.random.default_rng(seed)
    present = (~np.isnan(values)).astype(np.float64)
    known = np.nan_to_num(values)
    found = []
    for _ in range(0, RESAMPLES, _AT_A_TIME):
        drawn = rng.multinomial(units, np.full(units, 1 / units), size=_AT_A_TIME).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(drawn @ known.T / (drawn @ present.T))
    means = np.concatenate(found)  # [resamples, languages]
    return [_percentiles(means[:, list(group)].mean(axis=1)) for group in groups]


def _percentiles(means: Floats) -> tuple[float, float] | None:
    if not np.isfinite(means).all():
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
