"""Language-specific neurons by Language Activation Probability Entropy, LAPE (Tang et al. 2024,
arXiv 2402.16438), from the integer tables that collecting left.

For neuron n and language l let p(l, n) be the share of question-text positions at which it is active. With
p'(l, n) = p(l, n) / Σ_l p(l, n), LAPE(n) = −Σ_l p'(l, n) ln p'(l, n), in nats. Low entropy means that few
languages activate the neuron. Neurons that no language activates more than a bar, a percentile of all p, are
left out; of all neurons the share of lowest LAPE is specific, each to the languages that are above the bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from plast_train.context import Context
from plast_train.run_folder import read_json


@dataclass(frozen=True)
class SpecificNeurons:
    """K specific neurons, lowest entropy first; of equals the one in the lower layer, then the lower index.

    `layer`, `neuron` int64 `[K]`, `entropy` float64 `[K]` in nats, `languages` bool `[K, G]`; `bar` is the
    activation probability that a language's own neurons exceed.
    """

    layer: NDArray[np.int64]
    neuron: NDArray[np.int64]
    entropy: NDArray[np.float64]
    languages: NDArray[np.bool_]
    bar: float


def specific_neurons(
    token_counts: NDArray[np.integer], tokens: NDArray[np.integer], share: float, percentile: float
) -> SpecificNeurons:
    """`token_counts` `[G languages, L layers, N neurons]`, `tokens` `[G]`; `share` of the L·N neurons and
    `percentile` of the G·L·N probabilities, both fractions of 1.

    Raises:
        ValueError: a language has no position of question text.
    """
    if (tokens <= 0).any():
        raise ValueError("a language has no position of question text")
    languages, _, neurons = token_counts.shape
    p = (token_counts / tokens[:, None, None]).reshape(languages, -1)
    bar = float(np.partition(p.ravel(), rank := max(1, round(p.size * percentile)) - 1)[rank])
    total = p.sum(axis=0)
    share_of = p / np.where(total > 0, total, 1.0)
    entropy = -np.sum(share_of * np.log(np.where(share_of > 0, share_of, 1.0)), axis=0)
    entropy[~(p > bar).any(axis=0)] = np.inf
    lowest = np.argsort(entropy, kind="stable")[: round(entropy.size * share)]
    lowest = lowest[np.isfinite(entropy[lowest])]
    layer, neuron = np.divmod(lowest, neurons)
    return SpecificNeurons(layer, neuron, entropy[lowest], (p[:, lowest] > bar).T, bar)


def neurons(context: Context) -> dict[str, Any]:
    """The specific neurons of the base, how many a layer and language have, and the layer view beside them.
    Every rank computes the same."""
    config, run = context.config, context.run
    tables = load_file(run.statistics)
    options = config.analyse
    found = specific_neurons(
        tables["token_counts"], tables["tokens"], options.neuron_share, options.neuron_percentile
    )
    languages = config.data.languages
    _, layers, per_layer = tables["token_counts"].shape
    count = {
        language: np.bincount(found.layer[found.languages[:, g]], minlength=layers).tolist()
        for g, language in enumerate(languages)
    }
    return {
        "rule": "LAPE",
        "share": options.neuron_share,
        "percentile": options.neuron_percentile,
        "bar": found.bar,
        "languages": languages,
        "layers": layers,
        "neurons_per_layer": per_layer,
        "count": count,
        "msd": read_json(run.summary)["msd"],
        "selected_layers": read_json(run.selection)["selected_layers"],
        "specific": [
            {
                "layer": int(layer),
                "neuron": int(neuron),
                "entropy": float(entropy),
                "languages": [language for language, own in zip(languages, row, strict=True) if own],
            }
            for layer, neuron, entropy, row in zip(
                found.layer, found.neuron, found.entropy, found.languages, strict=True
            )
        ],
    }
