"""From text to the token sequences that are probed and trained on.

Each sequence is tokenised whole, as the model's own processor does it; the image's placeholder is then
repeated for its patches, which gives exactly the processor's tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from plast_train.config import TrainConfig
from plast_train.data.languages import language_name
from plast_train.data.questions import Record
from plast_train.data.token_tree import Key, TokenSequence
from plast_train.lvlm.families import ChatFormat

# Records whose texts are tokenised at a time: the tokenizer works on the texts of a call in parallel.
BATCH = 256


@dataclass(frozen=True)
class _Text:
    """What one sequence is made from; `question` is the half-open range of its characters in `prompt`."""

    key: Key
    prompt: str
    reply: str
    question: tuple[int, int]
    image: str | None


@dataclass(frozen=True)
class Prompter:
    """Writes prompts for one model. `languages` are the config's, in order; an image takes
    `num_image_tokens` tokens, each of which is `image_token` in the text."""

    tokenizer: Any
    chat: ChatFormat
    image_token: int
    num_image_tokens: int
    languages: tuple[str, ...]

    def probes(self, records: Sequence[Record], numbers: Iterable[int]) -> Iterator[list[TokenSequence]]:
        """For each number that record's questions as they are, in every language it has, in the chat format
        up to the turn that asks for the reply (arXiv 2508.18381)."""
        return self._tokenised(
            [
                self._text(Key(number, k), "{question}", records[number], "", records[number].image)
                for k, language in enumerate(self.languages)
                if language in records[number].questions
            ]
            for number in numbers
        )

    def translations(
        self, records: Sequence[Record], numbers: Iterable[int], train: TrainConfig
    ) -> Iterator[list[TokenSequence]]:
        """For each number that record's training samples: the instruction with its question, in every
        language it has but English; the reply is the English question."""
        return self._tokenised(
            [
                self._text(
                    Key(number, k),
                    train.instruction.replace("{language}", language_name(language)),
                    records[number],
                    self.chat.reply(records[number].questions["en"]),
                    records[number].image if train.image_in_training else None,
                )
                for k, language in enumerate(self.languages)
                if language != "en" and language in records[number].questions
            ]
            for number in numbers
        )

    def prompts(self, requests: Iterable[tuple[Key, str, str | None]]) -> list[TokenSequence]:
        """The sequence of each key, whole prompt and image (or None). Its `question` is everything after the
        chat's opening."""
        texts = [
            [_Text(key, prompt, "", (len(self.chat.opening(image is not None)), len(prompt)), image)]
            for key, prompt, image in requests
        ]
        return [sequence for group in self._tokenised(iter(texts)) for sequence in group]

    def _text(self, key: Key, instruction: str, record: Record, reply: str, image: str | None) -> _Text:
        """`instruction` contains `{question}`, which the record's question replaces."""
        question = record.questions[self.languages[key.language]]
        before, _, after = instruction.partition("{question}")
        prompt = self.chat.prompt(before + question + after, image is not None)
        start = len(self.chat.opening(image is not None) + before)
        return _Text(key, prompt, reply, (start, start + len(question)), image)

    def _tokenised(self, groups: Iterator[list[_Text]]) -> Iterator[list[TokenSequence]]:
        while batch := list(itertools.islice(groups, BATCH)):
            texts = list(itertools.chain.from_iterable(batch))
            encoded = self.tokenizer([t.prompt + t.reply for t in texts], return_offsets_mapping=True)
            made = map(self._sequence, texts, encoded["input_ids"], encoded["offset_mapping"])
            yield from [list(itertools.islice(made, len(group))) for group in batch]

    def _sequence(self, text: _Text, ids: list[int], offsets: list[tuple[int, int]]) -> TokenSequence:
        start, stop = text.question
        # Special tokens without text (BOS) have the offsets (0, 0), which overlap nothing.
        inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
        num_labels = sum(a >= len(text.prompt) for a, _ in offsets) if text.reply else 0
        first = inside[0]
        if self.image_token in ids:
            at, count = ids.index(self.image_token), self.num_image_tokens
            ids = ids[:at] + [self.image_token] * count + ids[at + 1 :]
            if first > at:
                first += count - 1
        span = (first, first + inside[-1] + 1 - inside[0])
        return TokenSequence.of(text.key, ids, span, num_labels, text.image)
