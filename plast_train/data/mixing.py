"""Which question-translation pairs are trained on, and how often: templates, difficulty, languages.

Everything follows from data, seed and options alone, whatever the number of ranks. Imports no torch.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from plast_train.config import SamplingConfig
from plast_train.data.token_tree import Key, TokenSequence

_WORD = re.compile(r"\w+")


def templates(questions: Sequence[str]) -> list[int]:
    """For each question the number of the first one that is made from the same template.

    Two questions are, if their words (case and punctuation aside) are equal but for one, or if a chain of
    such pairs links them: `Is the cat black?`, `Is the dog black?`, `Is the dog small?`.
    """
    first = list(range(len(questions)))

    def root(number: int) -> int:
        while first[number] != number:
            first[number] = first[first[number]]
            number = first[number]
        return number

    seen: dict[tuple[str | None, ...], int] = {}
    for number, question in enumerate(questions):
        words = _WORD.findall(question.lower())
        for place in range(len(words)):
            pattern = (*words[:place], None, *words[place + 1 :])
            one, other = root(seen.setdefault(pattern, number)), root(number)
            first[max(one, other)] = min(one, other)
    return [root(number) for number in range(len(questions))]


def some_of_each_template(
    questions: Sequence[str], numbers: Sequence[int], limit: int, seed: int
) -> list[int]:
    """Those of `numbers` that stay when at most `limit` records of a template do, drawn with the seed.
    `questions` are the English ones of all records."""
    groups: dict[int, list[int]] = defaultdict(list)
    for number, template in zip(numbers, templates([questions[n] for n in numbers]), strict=True):
        groups[template].append(number)
    rng = random.Random(f"templates {seed}")
    return sorted(n for group in groups.values() for n in rng.sample(group, min(limit, len(group))))


def by_difficulty(
    records: Sequence[Sequence[TokenSequence]], losses: Mapping[Key, float], sampling: SamplingConfig
) -> list[list[TokenSequence]]:
    """The records with the share `sampling.keep` of each language's pairs: those with the highest loss
    (`hardest`) or the lowest (`easiest`), of equals the first."""
    sign = -1.0 if sampling.keep_by == "hardest" else 1.0
    by_language: dict[int, list[Key]] = defaultdict(list)
    for sequence in (s for record in records for s in record):
        by_language[sequence.key.language].append(sequence.key)
    kept: set[Key] = set()
    for keys in by_language.values():
        keys.sort(key=lambda key: (sign * losses[key], key))
        kept.update(keys[: max(1, round(sampling.keep * len(keys)))])
    return [[s for s in record if s.key in kept] for record in records]


def language_shares(
    records: Sequence[Sequence[TokenSequence]],
    sampling: SamplingConfig,
    languages: Sequence[str],
    overlap: Mapping[str, Sequence[float]],
) -> dict[int, float] | None:
    """The share of each language (by its number) in the pairs of an epoch; None where they stay as given.

    With n pairs of a language, w its weight in `sampling.language_weights` (1 where none is given) and o its
    overlap with English, the mean over all layers of the probe's ratios, the share is proportional to
    w·n (`as_given`), w·n^(1/T) (`temperature`: Conneau & Lample 2019 have 1/T = 0.7), w (`balanced`) or
    w·n·(1 - o) (`overlap`). `overlap` is summary.json's, and read for that alone.
    """
    if sampling.languages == "as_given" and not sampling.language_weights:
        return None
    counts: dict[int, int] = defaultdict(int)
    for sequence in (s for record in records for s in record):
        counts[sequence.key.language] += 1

    def size(language: int, count: int) -> float:
        if sampling.languages == "temperature":
            assert sampling.temperature is not None
            return float(count ** (1.0 / sampling.temperature))
        if sampling.languages == "overlap":
            ratios = overlap[languages[language]]
            return count * (1.0 - sum(ratios) / len(ratios))
        return 1.0 if sampling.languages == "balanced" else float(count)

    weights = {
        language: sampling.language_weights.get(languages[language], 1.0) * size(language, count)
        for language, count in sorted(counts.items())
    }
    total = sum(weights.values())
    return {language: weight / total for language, weight in weights.items()}


def draw_epoch(
    records: Sequence[Sequence[TokenSequence]], shares: Mapping[int, float], seed: int, epoch: int
) -> list[list[TokenSequence]]:
    """As many pairs as `records` have, in these shares. A language with too few has all of them as often as
    fits and the rest drawn with the seed; a record's languages stay together."""
    own: dict[int, list[Key]] = defaultdict(list)
    for sequence in (s for record in records for s in record):
        own[sequence.key.language].append(sequence.key)
    rng = random.Random(f"sampling {seed} {epoch}")
    times: dict[Key, int] = {}
    for language, quota in _quotas(shares, sum(map(len, own.values()))).items():
        whole, rest = divmod(quota, len(own[language]))
        times.update(dict.fromkeys(own[language], whole))
        for key in rng.sample(own[language], rest):
            times[key] += 1
    copies = range(max(times.values()))
    drawn = [[s for s in record if times[s.key] > copy] for copy in copies for record in records]
    return [record for record in drawn if record]


def _quotas(shares: Mapping[int, float], total: int) -> dict[int, int]:
    """Whole numbers in these shares that add up to `total` (largest remainders; of equals the first)."""
    quotas = {language: int(share * total) for language, share in shares.items()}
    by_rest = sorted(shares, key=lambda language: (quotas[language] - shares[language] * total, language))
    for language in by_rest[: total - sum(quotas.values())]:
        quotas[language] += 1
    return quotas
