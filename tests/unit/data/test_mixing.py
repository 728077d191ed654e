"""Which pairs are trained on: templates, difficulty, shares of the languages."""

from __future__ import annotations

from collections import Counter

import pytest
from support.training_runs import make_config

from plast_train.config import Config, SamplingConfig
from plast_train.data.mixing import (
    by_difficulty,
    draw_epoch,
    language_shares,
    some_of_each_template,
    templates,
)
from plast_train.data.sampling import plan_training
from plast_train.data.token_tree import Key, TokenSequence

NAMES = ["en", "pt", "sw", "zh"]


def records(pairs: dict[int, list[int]]) -> list[list[TokenSequence]]:
    """Record number → the languages it has."""
    return [
        [TokenSequence.of(Key(number, k), (1, 2, 3, number, k), (0, 1), 1) for k in languages]
        for number, languages in pairs.items()
    ]


UNEVEN = records({n: [1, 2, 3] if n < 4 else [1, 3] if n < 10 else [3] for n in range(20)})  # 10, 4, 20 pairs


def counts(drawn: list[list[TokenSequence]]) -> Counter[int]:
    return Counter(s.key.language for record in drawn for s in record)


def test_templates_are_questions_that_differ_in_single_words() -> None:
    questions = ["Is the cat black?", "is the dog BLACK", "Is the dog small?", "Where is the cat?", "Why?"]
    assert templates(questions) == [0, 0, 0, 3, 4]
    assert templates(["A b c", "A x y"]) == [0, 1]  # two words differ
    assert templates(["Same", "Same"]) == [0, 0]
    assert templates(["", ""]) == [0, 1]  # nothing to compare


def test_at_most_so_many_of_a_template_are_kept() -> None:
    questions = [f"Is the {animal} black?" for animal in "abcdefgh"] + ["Where?", "How many cars are there?"]
    kept = some_of_each_template(questions, range(10), 3, seed=1)
    assert len([n for n in kept if n < 8]) == 3 and kept[-2:] == [8, 9]
    assert kept == some_of_each_template(questions, range(10), 3, seed=1)
    assert kept != some_of_each_template(questions, range(10), 3, seed=2)
    assert some_of_each_template(questions, [0, 9], 3, seed=1) == [0, 9]


@pytest.mark.parametrize(("keep_by", "kept"), [("hardest", {2, 3}), ("easiest", {0, 1})])
def test_the_hardest_or_easiest_pairs_of_each_language_stay(keep_by: str, kept: set[int]) -> None:
    pairs = records({n: [1, 2] for n in range(4)})
    difficulty = {s.key: s.key.record + 100.0 * s.key.language for record in pairs for s in record}
    sampling = SamplingConfig(keep=0.5, keep_by=keep_by)
    found = by_difficulty(pairs, difficulty, sampling)
    assert {s.key for record in found for s in record} == {Key(n, k) for n in kept for k in (1, 2)}


def test_the_share_of_few_pairs_is_rounded() -> None:
    pairs = records({n: [1] for n in range(5)})
    difficulty = {s.key: float(s.key.record) for record in pairs for s in record}
    for keep, number in ((0.5, 2), (0.7, 4), (0.35, 2), (0.01, 1)):
        found = by_difficulty(pairs, difficulty, SamplingConfig(keep=keep, keep_by="hardest"))
        assert sum(map(len, found)) == number, keep


def test_shares_follow_their_definitions() -> None:
    def shares(**options: object) -> dict[int, float] | None:
        overlap = {"pt": [0.5, 0.7], "sw": [0.2, 0.4], "zh": [0.9, 0.9]}
        return language_shares(UNEVEN, SamplingConfig(**options), NAMES, overlap)  # type: ignore[arg-type]

    assert shares() is None
    assert shares(languages="balanced") == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    roots = [10**0.5, 4**0.5, 20**0.5]
    expected = {k: root / sum(roots) for k, root in enumerate(roots, start=1)}
    assert shares(languages="temperature", temperature=2.0) == pytest.approx(expected)
    assert shares(languages="temperature", temperature=1.0) == pytest.approx(
        {1: 10 / 34, 2: 4 / 34, 3: 20 / 34}
    )
    weights = {1: 10 * 0.4, 2: 4 * 0.7, 3: 20 * 0.1}
    total = sum(weights.values())
    assert shares(languages="overlap") == pytest.approx({k: w / total for k, w in weights.items()})
    assert shares(language_weights={"sw": 5.0}) == pytest.approx({1: 10 / 50, 2: 20 / 50, 3: 20 / 50})


def test_an_epoch_is_drawn_in_these_shares_and_repeats_no_pair_needlessly() -> None:
    drawn = draw_epoch(UNEVEN, {1: 0.5, 2: 0.25, 3: 0.25}, seed=0, epoch=0)
    assert counts(drawn) == {1: 17, 2: 9, 3: 8}  # of 34; the larger remainder gets the last one
    times = Counter(s.key for record in drawn for s in record)
    assert {n for key, n in times.items() if key.language == 1} == {1, 2}  # 10 pairs for 17
    assert {n for key, n in times.items() if key.language == 3} == {1}  # 8 of 20
    assert all(len({s.key for s in record}) == len(record) for record in drawn)
    again = draw_epoch(UNEVEN, {1: 0.5, 2: 0.25, 3: 0.25}, seed=0, epoch=0)
    assert again == drawn != draw_epoch(UNEVEN, {1: 0.5, 2: 0.25, 3: 0.25}, seed=0, epoch=1)


def test_plan_is_made_of_the_drawn_epochs() -> None:
    plan = plan_training(UNEVEN, 6, 64, 0, 1.0, None, {1: 0.5, 2: 0.25, 3: 0.25})
    keys = [s.key for step in plan.steps for row in step.rows for tree in row for s in tree.sequences]
    assert Counter(key.language for key in keys) == {1: 17, 2: 9, 3: 8}
    natural = plan_training(UNEVEN, 6, 64, 0, 1.0, None)
    assert len(plan.steps) == len(natural.steps) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": "temperature"}, "go together"),
        ({"temperature": 2.0}, "go together"),
        ({"keep": 0.5}, "sampling.keep_by go together"),
        ({"keep_by": "hardest"}, "sampling.keep_by go together"),
        ({"language_weights": {"pt": 0.0}}, "must be above 0"),
        ({"language_weights": {"fr": 2.0}}, "translated from de, pt"),
        ({"language_weights": {"en": 2.0}}, "translated from de, pt"),
    ],
)
def test_contradicting_options_are_refused(options: dict[str, object], message: str) -> None:
    tree = make_config().model_dump(mode="json") | {"sampling": options}
    with pytest.raises(ValueError, match=message):
        Config.model_validate(tree)
