"""The lines of a comparison: what one or several runs (one a seed) did to each benchmark and language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from plast_train.comparison.intervals import Floats, bootstrap, mean_over_units
from plast_train.comparison.outcomes import WAYS, Answers, Outcome
from plast_train.evaluation.accuracies import MEAN


@dataclass(frozen=True)
class Change:
    """Accuracies of one benchmark in one language, or their mean over the others than English: fractions.

    `trained` is the mean over the runs, `change` its difference to `base`; `interval` is 95 % over questions,
    with the runs' answers averaged; `by_run` holds each run's own change, in the order of the seeds.
    """

    base: float
    trained: float
    interval: tuple[float, float] | None
    by_run: tuple[float, ...]

    @property
    def change(self) -> float:
        return self.trained - self.base


@dataclass(frozen=True)
class Group:
    """A line of the comparison: runs that differ in their seed alone. Without any, `note` says why."""

    name: str
    shows: str
    outcomes: tuple[Outcome, ...]
    note: str = ""

    @property
    def layers(self) -> str:
        """`0, 3`, or for each seed where they differ: `0 | 3 | 5`."""
        sets = [", ".join(map(str, o.layers)) for o in self.outcomes]
        return sets[0] if len(set(sets)) == 1 else " | ".join(sets)

    def mean(self, field: str) -> float:
        return fmean(getattr(outcome, field) for outcome in self.outcomes)


def changes(group: Group, benchmark: str, way: str) -> dict[str, Change]:
    """By language, English first, and last the mean of the others, where there are any."""
    answers = [outcome.answers[benchmark][way] for outcome in group.outcomes]
    rows = {language: [i] for i, language in enumerate(answers[0].languages)}
    if answers[0].others:
        rows[MEAN] = answers[0].others
    gains = np.mean([a.trained - a.base for a in answers], axis=0)
    intervals = dict(zip(rows, bootstrap(gains, list(rows.values())), strict=True))
    if len(group.outcomes) == 1:
        own = group.outcomes[0]
        intervals = {x: own.published_interval(benchmark, way, x) or i for x, i in intervals.items()}
    return {name: _change(answers, at, intervals[name]) for name, at in rows.items()}


def _change(answers: Sequence[Answers], at: list[int], interval: tuple[float, float] | None) -> Change:
    before = [mean_over_units(a.base[at]) for a in answers]
    after = [mean_over_units(a.trained[at]) for a in answers]
    by_run = tuple(y - x for x, y in zip(before, after, strict=True))
    return Change(fmean(before), fmean(after), interval, by_run)


def difference(group: Group, other: Group, benchmark: str, way: str) -> Change | None:
    """How much better than `other` on the mean of the languages that are not English; `base` is then that of
    `other`. Paired by question. None where there is English alone."""
    ours, theirs = (_others(g, benchmark, way) for g in (group, other))
    if ours.shape[1] == 0:
        return None
    mean_ours, mean_theirs = ours.mean(axis=0), theirs.mean(axis=0)
    every = list(range(ours.shape[1]))
    return Change(
        base=mean_over_units(mean_theirs),
        trained=mean_over_units(mean_ours),
        interval=bootstrap(mean_ours - mean_theirs, [every])[0],
        by_run=tuple(mean_over_units(a) - mean_over_units(mean_theirs) for a in ours),
    )


def _others(group: Group, benchmark: str, way: str) -> Floats:
    """`[runs, languages, units]` answers of the trained models."""
    answers = [outcome.answers[benchmark][way] for outcome in group.outcomes]
    return np.stack([a.trained[a.others] for a in answers])


def benchmarks_of(groups: Sequence[Group]) -> list[str]:
    return sorted({name for group in groups for outcome in group.outcomes for name in outcome.answers})


def records_of(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """One flat record for each line, benchmark, way of scoring and language: what the CSV holds. Accuracies
    in %, changes in points; `seed_min` and `seed_max` are the least and largest change over the seeds."""
    first = groups[0]
    for group in groups:
        facts = _facts(group)
        if not group.outcomes:
            yield facts
            continue
        for benchmark in benchmarks_of(groups):
            for way in (w for w in WAYS if w in group.outcomes[0].answers[benchmark]):
                for language, change in changes(group, benchmark, way).items():
                    against = difference(group, first, benchmark, way) if language == MEAN else None
                    named = {"benchmark": benchmark, "score": way, "language": language}
                    yield facts | named | _numbers(change, "") | _numbers(against, f"_from_{first.name}")


def _facts(group: Group) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": group.name, "what": group.shows, "note": group.note}
    if not group.outcomes:
        return facts
    one = group.outcomes[0]
    return facts | {
        "runs": len(group.outcomes),
        "method": one.method,
        "modules": one.modules,
        "layers": group.layers,
        "trained_parameters": round(group.mean("trained_parameters")),
        "trained_percent": 100 * group.mean("trained_share"),
        "steps": one.steps,
        "training_seconds": group.mean("seconds"),
        "peak_memory_gb": max(o.peak_memory for o in group.outcomes) / 1e9,
    }


def _numbers(change: Change | None, suffix: str) -> dict[str, float]:
    if change is None:
        return {}
    low, high = change.interval or (float("nan"), float("nan"))
    numbers = {"change": change.change, "low": low, "high": high}
    numbers |= {"seed_min": min(change.by_run), "seed_max": max(change.by_run)}
    shown = {f"{key}{suffix}": 100 * value for key, value in numbers.items()}
    return shown if suffix else {"base": 100 * change.base, "trained": 100 * change.trained} | shown
