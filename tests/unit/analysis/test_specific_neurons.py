"""Language-specific neurons: against a plain computation, one neuron at a time, of Tang et al.'s rule."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import plast_train.analysis.specific_neurons as module
from plast_train.analysis.specific_neurons import SpecificNeurons, specific_neurons

LANGUAGES, LAYERS, NEURONS = 4, 5, 60


@pytest.fixture
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Counts of which some neurons are never active and some for one language only."""
    rng = np.random.default_rng(3)
    tokens = np.array([311, 97, 250, 400])
    rates = rng.beta(0.5, 1.5, (LANGUAGES, LAYERS, NEURONS))
    rates[:, 1, :7] = 0
    rates[1:, 3, 10:20] = 0
    return rng.binomial(tokens[:, None, None], rates), tokens


def plainly(counts: np.ndarray, tokens: np.ndarray, share: float, percentile: float) -> dict:
    """`{(layer, neuron): languages}` and the bar."""
    p = {
        (layer, n): [counts[g, layer, n] / tokens[g] for g in range(LANGUAGES)]
        for layer in range(LAYERS)
        for n in range(NEURONS)
    }
    everything = sorted(value for values in p.values() for value in values)
    bar = everything[round(len(everything) * percentile) - 1]
    entropies = []
    for neuron, values in p.items():
        if max(values) > bar:
            parts = [value / sum(values) for value in values if value > 0]
            entropies.append((-sum(part * math.log(part) for part in parts), neuron))
    chosen = sorted(entropies)[: round(len(p) * share)]
    return {neuron: [g for g, value in enumerate(p[neuron]) if value > bar] for _, neuron in chosen}


def found(specific: SpecificNeurons) -> dict:
    return {
        (int(layer), int(neuron)): np.flatnonzero(languages).tolist()
        for layer, neuron, languages in zip(specific.layer, specific.neuron, specific.languages, strict=True)
    }


@pytest.mark.parametrize(("share", "percentile"), [(0.01, 0.95), (0.1, 0.8), (1.0, 0.95)])
def test_the_neurons_of_the_plain_rule(tables, share: float, percentile: float) -> None:
    ours = specific_neurons(*tables, share, percentile)
    assert found(ours) == plainly(*tables, share, percentile)
    assert list(ours.entropy) == sorted(ours.entropy)
    assert (ours.entropy <= math.log(LANGUAGES) + 1e-12).all()


def test_a_neuron_of_one_language_comes_first(tables) -> None:
    counts, tokens = tables
    counts[:, 2, 5] = [0, 0, 240, 0]
    ours = specific_neurons(counts, tokens, 0.02, 0.9)
    assert found(ours)[2, 5] == [2] and ours.entropy[0] == 0.0
    assert not any(layer == 1 and neuron < 7 for layer, neuron in found(ours))  # never active


def test_a_language_without_text_is_refused(tables) -> None:
    with pytest.raises(ValueError, match="no position"):
        specific_neurons(tables[0], np.array([1, 0, 1, 1]), 0.01, 0.95)


def no_bar(entropy: np.ndarray, *_: object, **__: object) -> np.ndarray:
    return np.argsort(np.where(np.isinf(entropy), 0, entropy), kind="stable")


@pytest.mark.parametrize(
    ("name", "mutation"),
    [("argsort", no_bar), ("argsort", lambda e, **_: np.argsort(-e)), ("log", np.log1p)],
    ids=["inactive neurons count", "highest entropy", "another logarithm"],
)
def test_a_broken_rule_is_noticed(
    name: str, mutation: Callable[..., np.ndarray], tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Numpy:
        def __getattr__(self, attribute: str) -> object:
            return mutation if attribute == name else getattr(np, attribute)

    monkeypatch.setattr(module, "np", Numpy())
    ours = specific_neurons(*tables, 0.1, 0.8)
    assert found(ours) != plainly(*tables, 0.1, 0.8)
