"""Intervals and p values against scipy and statsmodels on random tables, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests

from plast_train.scoring import significance
from plast_train.scoring.significance import differing_units, holm, interval, mcnemar


def test_mcnemar_on_random_tables() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        base, trained = rng.random((2, int(rng.integers(1, 60)))) < rng.random((2, 1))
        table = [[(base & trained).sum(), (base & ~trained).sum()], [(~base & trained).sum(), 0]]
        expected = mcnemar_of_statsmodels(table, exact=True).pvalue
        assert mcnemar(int(table[0][1]), int(table[1][0])) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == mcnemar(6, 0) == pytest.approx(2 / 2**6)
    assert mcnemar(3, 3) == 1.0


def test_holm_on_random_values() -> None:
    rng = np.random.default_rng(1)
    for _ in range(6):  # statsmodels collects garbage in each: 0.4 s in a full run
        values = np.round(rng.random(int(rng.integers(1, 12))) ** 3, 2).tolist()  # with ties
        assert holm(values) == pytest.approx(multipletests(values, method="holm")[1].tolist())
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_interval_is_that_of_the_mean_where_every_unit_has_one_row() -> None:
    """Against scipy's own bootstrap of the paired differences' mean with the same draws, and against the
    normal approximation."""
    rng = np.random.default_rng(2)
    for _ in range(5):
        gains = rng.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=(1, 200))
        low, high = interval(gains, np.ones_like(gains), seed=3) or (0.0, 0.0)
        own = stats.bootstrap(
            (gains[0].astype(float),),
            np.mean,
            n_resamples=significance.RESAMPLES,
            batch=500,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
        assert (low, high) == pytest.approx((own.low, own.high), abs=1e-9)
        half = 1.96 * gains.std() / np.sqrt(200)
        assert (low, high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.012)


def test_rows_of_one_unit_are_drawn_together() -> None:
    """Four rows that always agree say no more than one: the interval is that of the units."""
    rng = np.random.default_rng(4)
    gains = rng.choice([-1, 0, 1], size=(1, 80))
    once = interval(gains, np.ones_like(gains), seed=0)
    assert interval(4 * gains, np.full_like(gains, 4), seed=0) == pytest.approx(once)
    many = interval(np.repeat(gains, 4, axis=1), np.ones((1, 320)), seed=0)
    assert many is not None and once is not None
    assert (once[1] - once[0]) / (many[1] - many[0]) == pytest.approx(2, rel=0.1)


def test_languages_are_drawn_with_the_same_units() -> None:
    """A language twice is that language: drawn apart, the mean of both would vary less."""
    rng = np.random.default_rng(5)
    gains = rng.choice([-1, 0, 1], size=(1, 60))
    twice = np.vstack([gains, gains])
    assert interval(twice, np.ones_like(twice), seed=0) == interval(gains, np.ones_like(gains), seed=0)


def test_a_language_without_some_units_and_means_over_seeds() -> None:
    """Against a bootstrap with plain numpy, where one language lacks units and gains are fractions."""
    values = np.random.default_rng(1).integers(-3, 4, (2, 40)) / 3  # of three seeds
    values[0, :5] = np.nan
    rng = np.random.default_rng(7)
    means = []
    for _ in range(4000):
        drawn = rng.integers(0, 40, 40)
        means.append(np.nanmean(values[:, drawn], axis=1).mean())
    expected = tuple(np.quantile(means, [0.025, 0.975]))
    found = interval(np.nan_to_num(values), ~np.isnan(values), seed=0)
    assert found == pytest.approx(expected, abs=0.02)


def test_the_same_seed_gives_the_same_interval() -> None:
    gains = np.random.default_rng(6).choice([-1, 0, 1], size=(2, 50))
    counts = np.ones_like(gains)
    assert interval(gains, counts, seed=1) == interval(gains, counts, seed=1)
    assert interval(gains, counts, seed=1) != interval(gains, counts, seed=2)


def test_where_there_is_no_interval() -> None:
    assert interval(np.ones((1, 1)), np.ones((1, 1)), seed=0) is None
    sparse = np.array([[1, 0, 0], [1, 1, 1]])  # draws without the only unit of the first language
    assert interval(sparse, sparse, seed=0) is None
    assert interval(np.zeros((1, 5)), np.ones((1, 5)), seed=0) == (0.0, 0.0)


def test_in_the_mean_over_languages_a_language_weighs_the_same_whatever_its_rows() -> None:
    """Unit 0: won in a language of 1 row, lost in one of 4. The mean gains 1 - 1/4."""
    gains, counts = np.array([[1, 0], [-1, 0]]), np.array([[1, 0], [1, 3]])
    assert differing_units(gains, counts) == (0, 1)
