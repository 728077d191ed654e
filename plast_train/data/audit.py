"""What the data are, before a GPU is spent: counts, tokens per language, sequences that cannot run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from plast_train.config import DataConfig
from plast_train.data.languages import language_name
from plast_train.data.questions import Record, refuse_or_leave_out
from plast_train.data.readers import Defect
from plast_train.data.token_tree import TokenSequence, build_tree


@dataclass(frozen=True)
class LanguageTokens:
    """Tokens of the questions' own text in one language.

    `per_english_word` is the fertility: tokens over the words of the same questions in English, so that
    languages without spaces between words compare. `relative_to_english` is the ratio of the token counts,
    the tokenization premium of Petrov et al. 2023 (arXiv 2305.15425).
    """

    mean: float
    longest: int
    per_english_word: float
    relative_to_english: float


@dataclass(frozen=True)
class Audit:
    """Counts of the records and, if there was a tokenizer, of their tokens.

    `repeated_questions` counts records whose English question an earlier record has (templates repeat);
    `repeated_records` those about the same image, too. `longest_sequence` names record and language.
    """

    records: int
    with_image: int
    images: int
    repeated_questions: int
    repeated_records: int
    languages: list[str]
    tokens: dict[str, LanguageTokens] = field(default_factory=dict)
    longest_sequence: int | None = None
    longest_where: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        shown = [
            f"{self.records} records in {len(self.languages)} languages, {self.with_image} of them about "
            f"{self.images} images; {self.repeated_questions} repeat an earlier question in English, "
            f"{self.repeated_records} of them about the same image"
        ]
        if self.tokens:
            shown.append("language                  tokens/question  longest  tokens/English word  × English")
        for code, t in self.tokens.items():
            name = f"{code} {language_name(code)}"
            shown.append(
                f"{name:<25} {t.mean:>15.1f} {t.longest:>8d} {t.per_english_word:>20.2f} "
                f"{t.relative_to_english:>10.2f}"
            )
        if self.longest_sequence is not None:
            shown.append(f"longest sequence: {self.longest_sequence} tokens ({self.longest_where})")
        return shown


def audit(records: Sequence[Record], config: DataConfig, sequences: Iterable[TokenSequence] = ()) -> Audit:
    """Counts the records, and the tokens of `sequences` made from them (each record in every language it has;
    read once, so a generator will do). Without sequences nothing is said of tokens."""
    images = [record.image for record in records if record.image is not None]
    questions = [record.questions["en"] for record in records]
    pairs = [(record.image, record.questions["en"]) for record in records if record.image is not None]
    counts: dict[int, dict[int, int]] = {n: {} for n in range(len(config.languages))}  # tokens, by record
    longest: TokenSequence | None = None
    for sequence in sequences:
        start, stop = sequence.question
        counts[sequence.key.language][sequence.key.record] = stop - start
        if longest is None or sequence.length > longest.length:
            longest = sequence
    english = counts[config.languages.index("en")]
    tokens = {
        config.languages[language]: LanguageTokens(
            mean=sum(count.values()) / len(count),
            longest=max(count.values()),
            per_english_word=sum(count.values())
            / sum(len(records[n].questions["en"].split()) for n in count),
            relative_to_english=sum(count.values()) / sum(english[n] for n in count),
        )
        for language, count in counts.items()
        if count
    }
    return Audit(
        records=len(records),
        with_image=len(images),
        images=len(set(images)),
        repeated_questions=len(questions) - len(set(questions)),
        repeated_records=len(pairs) - len(set(pairs)),
        languages=list(config.languages),
        tokens=tokens,
        longest_sequence=longest.length if longest else None,
        longest_where=_where(longest, records, config) if longest else None,
    )


def check_sequences(
    groups: Iterable[Sequence[TokenSequence]],
    records: Sequence[Record],
    config: DataConfig,
    *,
    section: str,
    tokens_per_row: int,
    max_positions: int,
    image_token_id: int,
    image_tokens: int,
) -> list[int]:
    """Numbers of the records whose sequences can all run, in order; each of `groups` holds those of a record.
    They are made for the config's `section`, `probe` or `train`, which names `tokens_per_row` in messages.

    Raises:
        UserError: more than `data.max_bad_fraction` of the records have a sequence that is longer than a row
            or than the model's positions, that has no label token to train on, or whose image tokens are not
            the `image_tokens` that the vision tower makes (none without an image); or, probed, do not fit a
            row in all languages together. Fewer are left out with a warning.
    """
    defects: list[Defect] = []
    bad: set[int] = set()
    for group in groups:
        problems = []
        for sequence in group:
            language = config.languages[sequence.key.language]
            found = _problems(sequence, section, tokens_per_row, max_positions, image_token_id, image_tokens)
            problems += [f"in '{language}': {what}" for what in found]
        if section == "probe" and not problems and (length := build_tree(group).tokens) > tokens_per_row:
            problems.append(
                f"{length} tokens in all languages do not fit a row together; shorten its questions or set "
                f"probe.tokens_per_row={length}"
            )
        if problems:
            number = group[0].key.record
            bad.add(number)
            defects += [Defect(records[number].where, records[number].id, what) for what in problems]
    refuse_or_leave_out(defects, len(records), config.max_bad_fraction)
    return [number for number in range(len(records)) if number not in bad]


def _problems(
    sequence: TokenSequence,
    section: str,
    tokens_per_row: int,
    max_positions: int,
    image_token_id: int,
    image_tokens: int,
) -> Iterator[str]:
    length = sequence.length
    found = sequence.tokens.count(image_token_id)
    expected = image_tokens if sequence.image is not None else 0
    if length > max_positions:
        yield f"{length} tokens, but the model has {max_positions} positions; shorten it"
    elif length > tokens_per_row:
        yield f"{length} tokens do not fit a row; shorten it or set {section}.tokens_per_row={length}"
    if section == "train" and sequence.labels < 1:
        yield "no token to train on; its English question gives none"
    if found != expected:
        yield (
            f"{found} image tokens where the vision tower makes {expected}; "
            "remove the image's mark from the text, or fix the processor of model.path"
        )


def _where(sequence: TokenSequence, records: Sequence[Record], config: DataConfig) -> str:
    record = records[sequence.key.record]
    return f"{record.where}, id {record.id!r} in '{config.languages[sequence.key.language]}'"
