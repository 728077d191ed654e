"""From text to the token sequences that are probed and trained on.

Each sequence is tokenised whole, as the model's own processor does it; the image's placeholder is then
repeated for its patches, which gives the processor's tokens exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plast_train.data.languages import language_name
from plast_train.data.questions import Record
from plast_train.data.token_tree import Key, TokenSequence
from plast_train.lvlm.families import ChatFormat


@dataclass(frozen=True)
class Prompter:
    """Writes prompts for one model. `languages` are the config's, in order; `image_tokens` is the number of
    tokens an image takes."""

    tokenizer: Any
    chat: ChatFormat
    image_token: int
    image_tokens: int
    languages: tuple[str, ...]

    def probe(self, number: int, record: Record, language: str) -> TokenSequence:
        """The bare question in the chat format, up to the turn that asks for the reply (arXiv 2508.18381)."""
        key = Key(number, self.languages.index(language))
        return self._sequence(key, "{question}", record.questions[language], "", record.image)

    def translation(
        self, number: int, record: Record, language: str, instruction: str, with_image: bool
    ) -> TokenSequence:
        """The instruction with the question in `language`; the reply is the English question."""
        key = Key(number, self.languages.index(language))
        named = instruction.replace("{language}", language_name(language))
        reply = self.chat.reply(record.questions["en"])
        return self._sequence(
            key, named, record.questions[language], reply, record.image if with_image else None
        )

    def _sequence(
        self, key: Key, instruction: str, question: str, reply: str, image: str | None
    ) -> TokenSequence:
        """`instruction` has the question's place as `{question}`."""
        before, _, after = instruction.partition("{question}")
        prompt = self.chat.prompt(before + question + after, image is not None)
        start = len(self.chat.opening(image is not None) + before)
        encoded = self.tokenizer(prompt + reply, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        # Special tokens without text (BOS) have the offsets (0, 0), which overlap nothing.
        inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(question) and b > start]
        labels = sum(a >= len(prompt) for a, _ in offsets) if reply else 0
        tokens, first = self._expand_image(ids, inside[0])
        span = (first, first + inside[-1] + 1 - inside[0])
        return TokenSequence.of(key, tokens, span, labels, image)

    def _expand_image(self, ids: list[int], position: int) -> tuple[list[int], int]:
        """The ids with the placeholder repeated, and where `position` has moved to."""
        if self.image_token not in ids:
            return ids, position
        at = ids.index(self.image_token)
        moved = position + self.image_tokens - 1 if position > at else position
        return ids[:at] + [self.image_token] * self.image_tokens + ids[at + 1 :], moved
