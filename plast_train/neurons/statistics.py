"""Overlap ratio, Jaccard index and mean squared deviation per layer (arXiv 2508.18381).

All inputs are integers and every sum is exact (integers) or correctly rounded (`math.fsum`), so a result
does not depend on the order of records, on how many ranks collected them, or on the machine's vector width.

Two tables can be read:

- `last`: the sets of neurons active at the last prompt position, one set per record, language and layer.
- `text`: how often each neuron is active over all positions of question text. A neuron then belongs to a
  language's set to the degree p = its firing frequency, and the set formulas become those of fuzzy sets
  (Zadeh 1965): |A| = Σ p, |A ∩ B| = Σ min(p, q), |A ∪ B| = Σ max(p, q); the Jaccard index becomes
  Ružička's. With frequencies of 0 and 1 they are the set formulas again. [choice]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from plast_train.data.languages import ENGLISH

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class LayerStatistics:
    """Per layer and language, `[L layers, G languages]` float64, languages in config order.

    `active` is the mean number of active neurons of a question (at its last prompt position) or of a
    position (of question text); `overlap` and `jaccard` are ratios to English, 1 for English itself.
    """

    languages: tuple[str, ...]
    overlap: Floats
    jaccard: Floats
    active: Floats

    @property
    def num_layers(self) -> int:
        return int(self.active.shape[0])

    def msd(self, reference: Literal["mean", "english"]) -> Floats:
        """`[L]` mean squared deviation of `active`, in neurons squared (arXiv 2508.18381).

        `mean`: Σ_g (n_g - n̄)² / G over the G languages; `english`: Σ_{g≠en} (n_g - n_en)² / (G - 1).
        """
        english = self.languages.index(ENGLISH)
        result = np.zeros(self.num_layers)
        for layer, row in enumerate(self.active.tolist()):
            if reference == "mean":
                centre = math.fsum(row) / len(row)
                deviations = row
            else:
                centre = row[english]
                deviations = row[:english] + row[english + 1 :]
            result[layer] = math.fsum((n - centre) ** 2 for n in deviations) / len(deviations)
        return result

    def ratios(self, kind: Literal["english", "jaccard"]) -> Floats:
        """`[L, G]`: `overlap` (relative to English's set) or `jaccard` (relative to the union)."""
        return self.overlap if kind == "english" else self.jaccard

    def curve(self, kind: Literal["english", "jaccard"]) -> Floats:
        """`[L]`: the ratios averaged over the languages other than English."""
        others = [g for g, language in enumerate(self.languages) if language != ENGLISH]
        return np.array([math.fsum(row[others].tolist()) / len(others) for row in self.ratios(kind)])


def layer_statistics(
    tables: Mapping[str, NDArray[np.integer]], languages: tuple[str, ...], position: Literal["last", "text"]
) -> LayerStatistics:
    """The statistics of one position, from the tables of `statistics.safetensors`.

    Args:
        tables: for `last`: `active` and `shared_with_english`, both `[S, L, G]`; for `text`:
            `token_counts` `[G, L, N]` and `tokens` `[G]`.
        languages: the G languages in the tables' order; English is `en`.

    Raises:
        ValueError: the tables are of other languages, hold nothing, or contradict each other.
    """
    if position == "last":
        return _at_last_position(languages, tables["active"], tables["shared_with_english"])
    return _over_question_text(languages, tables["token_counts"], tables["tokens"])


def _at_last_position(
    languages: tuple[str, ...], active: NDArray[np.integer], shared: NDArray[np.integer]
) -> LayerStatistics:
    if active.shape != shared.shape or active.ndim != 3 or active.shape[2] != len(languages):
        raise ValueError(f"active {active.shape} and shared {shared.shape} are not [S, L, {len(languages)}]")
    if active.shape[0] == 0:
        raise ValueError("the tables hold no record")
    size, both = active.astype(np.int64), shared.astype(np.int64)
    english = languages.index(ENGLISH)
    size_en = np.broadcast_to(size[:, :, english, None], size.shape)
    if (both > np.minimum(size, size_en)).any() or (both < 0).any():
        raise ValueError("an intersection is larger than one of its sets")
    # [choice] Ratios of single records are averaged, so that every record counts the same; summing the sets
    # first would weight records by how many neurons they activate.
    return LayerStatistics(
        languages,
        overlap=_mean_over_records(_ratio(both, size_en)),
        jaccard=_mean_over_records(_ratio(both, size + size_en - both)),
        active=size.sum(axis=0) / size.shape[0],
    )


def _over_question_text(
    languages: tuple[str, ...], counts: NDArray[np.integer], tokens: NDArray[np.integer]
) -> LayerStatistics:
    if counts.ndim != 3 or tokens.shape != (len(languages),) or counts.shape[0] != len(languages):
        raise ValueError(
            f"token_counts {counts.shape}, tokens {tokens.shape}: not {len(languages)} languages"
        )
    if (tokens <= 0).any():
        raise ValueError("a language has no position of question text")
    if (counts < 0).any() or (counts > tokens[:, None, None]).any():
        raise ValueError("a neuron is active at more positions than there are")
    shape = (counts.shape[1], len(languages))
    overlap, jaccard, active = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    # Frequencies over the common denominator tokens·tokens_en are integers, so every sum stays exact.
    english = languages.index(ENGLISH)
    q = counts[english].astype(np.int64)
    for g in range(len(languages)):
        p = counts[g].astype(np.int64)
        scaled_p, scaled_q = p * int(tokens[english]), q * int(tokens[g])
        both = np.minimum(scaled_p, scaled_q).sum(axis=1)
        overlap[:, g] = _ratio(both, scaled_q.sum(axis=1))
        jaccard[:, g] = _ratio(both, np.maximum(scaled_p, scaled_q).sum(axis=1))
        active[:, g] = p.sum(axis=1) / int(tokens[g])
    return LayerStatistics(languages, overlap, jaccard, active)


def _ratio(part: Integers, whole: Integers) -> Floats:
    """`part / whole`; 1 where the whole is empty, since everything in an empty set is shared."""
    return np.where(whole == 0, 1.0, part / np.maximum(whole, 1))


def _mean_over_records(table: Floats) -> Floats:
    """`[S, L, G]` → `[L, G]`."""
    columns = table.reshape(len(table), -1).T
    means = [math.fsum(column.tolist()) / len(table) for column in columns]
    return np.array(means).reshape(table.shape[1:])
