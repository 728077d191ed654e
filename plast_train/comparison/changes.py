"""What one or several runs (one a seed) changed in each benchmark and language, with intervals and p."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np

from plast_train.comparison.outcomes import WAYS, Answers, Floats, Outcome
from plast_train.scoring.accuracies import MEAN
from plast_train.scoring.comparisons import is_formatting
from plast_train.scoring.significance import differing_units, holm, interval, mcnemar


@dataclass(frozen=True)
class Change:
    """Accuracies of one benchmark in one language, or their mean over the languages that are not English, as
    fractions of 1.

    `trained` is the mean over the runs, `change` its difference from `base`. `interval` is the 95 % interval
    of the change over questions, with the runs' answers averaged. `by_run` holds each run's own change, in
    the order of the seeds.

    `p` is McNemar's exact p, `p_holm` that of a language corrected over the languages (Holm). Neither exists
    where several runs are averaged: the test counts single answers, and the answers of several seeds to one
    question are not independent. `p_by_run` then has each run's own p, not corrected.
    """

    base: float
    trained: float
    interval: tuple[float, float] | None
    by_run: tuple[float, ...]
    p: float | None = None
    p_holm: float | None = None
    p_by_run: tuple[float, ...] = ()

    @property
    def change(self) -> float:
        return self.trained - self.base

    @property
    def low(self) -> float | None:
        return None if self.interval is None else self.interval[0]


@dataclass(frozen=True, eq=False)  # hashed by identity, so that what is computed of it can be cached
class Group:
    """A line of the comparison: runs that differ in their seed alone. `description` is for the tables;
    `note` says what is special, e.g. why there is no run."""

    name: str
    description: str
    outcomes: tuple[Outcome, ...]
    note: str = ""

    @property
    def layers(self) -> str:
        """`0, 3`, or for each seed where they differ: `0 | 3 | 5`."""
        sets = [", ".join(map(str, o.layers)) for o in self.outcomes]
        return sets[0] if len(set(sets)) == 1 else " | ".join(sets)

    def mean(self, field: str) -> float:
        return fmean(getattr(outcome, field) for outcome in self.outcomes)


@cache  # an interval of thousands of units takes seconds; table, CSV and figure each ask for it
def changes(group: Group, benchmark: str, way: str) -> dict[str, Change]:
    """The group's runs against their base: language → change, English first and last the mean of the others,
    where there are any."""
    answers = [outcome.answers[benchmark][way] for outcome in group.outcomes]
    base, trained = np.stack([a.base for a in answers]), np.stack([a.trained for a in answers])
    one = group.outcomes[0] if len(group.outcomes) == 1 else None
    labels = _labels(answers[0])
    found = _compared(base, trained, labels, tested=one is not None)
    if one is None:
        return _with_p_by_run(found, list(base), list(trained), labels)
    return {label: _as_published(c, one.published(benchmark, way, label)) for label, c in found.items()}


@cache
def differences(first: Group, group: Group, benchmark: str, way: str) -> dict[str, Change]:
    """How much better `group` is than `first`, with the keys of `changes`; `base` is then the accuracy of
    `first`. `p_by_run` is against the run of `first` with the same seed."""
    theirs, ours = (
        [(outcome.seed, outcome.answers[benchmark][way].trained) for outcome in g.outcomes]
        for g in (first, group)
    )
    before, after = (np.stack([trained for _, trained in own]) for own in (theirs, ours))
    # The groups may have different numbers of seeds: every run is compared with the mean of the first group.
    before = np.broadcast_to(before.mean(axis=0), after.shape)
    labels, tested = _labels(first.outcomes[0].answers[benchmark][way]), len(theirs) == len(ours) == 1
    found = _compared(before, after, labels, tested)
    if tested:
        return found
    by_seed = dict(theirs)
    return _with_p_by_run(found, [by_seed.get(seed) for seed, _ in ours], list(after), labels)


def by_way(
    compared: Callable[[Group, str, str], dict[str, Change]], group: Group, benchmark: str
) -> dict[str, dict[str, Change]]:
    """Way of scoring → what `compared`, e.g. `changes`, returns; open questions have no option logits."""
    return {
        way: compared(group, benchmark, way) for way in WAYS if way in group.outcomes[0].answers[benchmark]
    }


def formatting(ways: Mapping[str, Mapping[str, Change]]) -> list[str]:
    """The keys of `changes` whose gain shows in generated answers alone; `ways` is from `by_way`."""
    generated, logits = (ways.get(way, {}) for way in WAYS)
    return [label for label in logits if is_formatting(generated[label].low, logits[label].low)]


def _labels(answers: Answers) -> dict[str, list[int]]:
    """Which languages each line is the mean of."""
    rows = {language: [i] for i, language in enumerate(answers.languages)}
    return rows | ({MEAN: answers.others} if answers.others else {})


def _compared(
    before: Floats, after: Floats, labels: Mapping[str, list[int]], tested: bool
) -> dict[str, Change]:
    """Paired by unit; both are `[runs, languages, units]`."""
    gains = (after - before).mean(axis=0)
    known, counts = np.nan_to_num(gains), ~np.isnan(gains)
    tests = _tests(gains, labels) if tested else {}
    found = {}
    for label, at in labels.items():
        pairs = [(_accuracy(b[at]), _accuracy(a[at])) for b, a in zip(before, after, strict=True)]
        base, trained = map(fmean, zip(*pairs, strict=True))
        by_run = tuple(a - b for b, a in pairs)
        own_interval = interval(known[at], counts[at], seed=0)
        found[label] = Change(base, trained, own_interval, by_run, *tests.get(label, ()))
    return found


def _accuracy(values: Floats) -> float:
    """The mean over languages of each language's mean over units, from `[languages, units]`."""
    return float(np.nanmean(values, axis=1).mean())


def _tests(gains: Floats, labels: Mapping[str, list[int]]) -> dict[str, tuple[float, float | None]]:
    """McNemar's p of each line, and of a language the one corrected over the languages."""
    known, counts = np.nan_to_num(gains), ~np.isnan(gains)
    p = {label: mcnemar(*differing_units(known[at], counts[at])) for label, at in labels.items()}
    languages = [label for label in labels if label != MEAN]
    corrected = dict(zip(languages, holm([p[language] for language in languages]), strict=True))
    return {label: (p[label], corrected.get(label)) for label in labels}


def _with_p_by_run(
    found: Mapping[str, Change],
    before: Sequence[Floats | None],
    after: Sequence[Floats],
    labels: Mapping[str, list[int]],
) -> dict[str, Change]:
    """Adds each run's own p; NaN for a run without a counterpart of the same seed."""
    tests = [{} if b is None else _tests(a - b, labels) for b, a in zip(before, after, strict=True)]
    return {
        label: replace(change, p_by_run=tuple(own[label][0] if own else math.nan for own in tests))
        for label, change in found.items()
    }


def _as_published(change: Change, published: Mapping[str, Any]) -> Change:
    """With the interval and p of the run's own evaluation, so that no two pages show different numbers."""
    low, high, p, p_holm = (published.get(key) for key in ("low", "high", "p", "p_holm"))
    if low is not None and high is not None:
        change = replace(change, interval=(low, high))
    return change if p is None else replace(change, p=p, p_holm=p_holm)


def benchmarks_of(groups: Sequence[Group]) -> list[str]:
    """The names of all benchmarks that any of the runs has answered."""
    return sorted({name for group in groups for outcome in group.outcomes for name in outcome.answers})
