"""Rows for training the tiny base: one image a row, its questions as branches that share the prefix.

Each conversation is tokenised whole; the shared prefix ends with the image tokens. Positions restart at
the prefix's end in each branch, and a token sees the prefix and its own branch only, so that a branch's loss
is that of the conversation alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaTokenizer

from plast_train.tiny.samples import conversation
from plast_train.tiny.tokenizer import IMAGE_TOKEN

IGNORED = -100
# Language modelling of the prompts, as real decoders had in their pretraining.
PROMPT_WEIGHT = 0.3


@dataclass(frozen=True)
class Rows:
    """A batch: all but `mask` are [rows, length]; `mask` is [rows, 1, length, length], True where seen.

    `weights` add up to one over each sample's response, so that a letter counts as much as a sentence, and
    to PROMPT_WEIGHT over its prompt.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor
    mask: Tensor


class RowBuilder:
    """Turns samples into rows. Tokenised texts are kept, as most come up many times."""

    def __init__(self, tokenizer: LlamaTokenizer, image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.image_tokens = image_tokens
        self.pad = tokenizer.pad_token_id
        prompt = tokenizer(conversation("")).input_ids
        self.prefix = prompt[: prompt.index(self.image)] + [self.image] * image_tokens

    def branch(self, text: str, response: str) -> tuple[list[int], int]:
        """A branch's tokens and how many of its last ones are the response's (with `</s>`)."""
        whole = self._after_image(conversation(text, response))
        prompt = self._after_image(conversation(text))
        assert whole[: len(prompt)] == prompt
        return whole, len(whole) - len(prompt)

    def prompt(self, text: str) -> list[int]:
        """The whole prompt's tokens, image tokens included, up to the turn that asks for the reply."""
        return self.prefix + self._after_image(conversation(text))

    def _after_image(self, text: str) -> list[int]:
        tokens = self.tokenizer(text[text.index(IMAGE_TOKEN) :], add_special_tokens=False).input_ids
        return tokens[tokens.index(self.image) + 1 :]

    def rows(self, samples: list[list[tuple[str, str]]]) -> Rows:
        """One row for each image's list of samples, padded to the longest, rounded up to a multiple of 32."""
        made = [[self.branch(*each) for each in row] for row in samples]
        longest = max(sum(len(tokens) for tokens, _ in row) for row in made) + len(self.prefix)
        shape = (len(made), -(-longest // 32) * 32)
        tokens = torch.full(shape, self.pad)
        labels = torch.full(shape, IGNORED)
        positions = torch.zeros(shape, dtype=torch.long)
        weights = torch.zeros(shape)
        owner = torch.full(shape, -1)  # 0 the prefix, 1.. the branches, -1 padding
        prefix = len(self.prefix)
        for index, row in enumerate(made):
            tokens[index, :prefix] = torch.tensor(self.prefix)
            positions[index, :prefix] = torch.arange(prefix)
            owner[index, :prefix] = 0
            at = prefix
            for number, (branch, answered) in enumerate(row, start=1):
                end = at + len(branch)
                tokens[index, at:end] = torch.tensor(branch)
                positions[index, at:end] = torch.arange(prefix, prefix + len(branch))
                owner[index, at:end] = number
                # The label of a position is the token that follows it.
                labels[index, at : end - 1] = tokens[index, at + 1 : end]
                weights[index, at : end - answered - 1] = PROMPT_WEIGHT / (len(branch) - answered - 1)
                weights[index, end - answered - 1 : end - 1] = 1 / answered
                at = end
        return Rows(tokens, positions, labels, weights, tree_mask(owner))


def tree_mask(owner: Tensor) -> Tensor:
    """Who sees whom, [rows, 1, length, length]: earlier tokens of the prefix (0) or of one's own branch."""
    length = owner.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    same = owner[:, :, None] == owner[:, None, :]
    prefix = (owner == 0)[:, None, :]
    return ((same | prefix) & earlier)[:, None]
