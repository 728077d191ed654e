"""Benchmark items → the prompts, batches and tensors that a model is given."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch

from plast_train.errors import UserError
from plast_train.lvlm.families import ChatFormat
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.prompts import Prompter
from plast_train.tasks.benchmark import Benchmark, Item

Key = tuple[str, str, int]  # benchmark, language, index


@dataclass(frozen=True)
class Question:
    """A row of a benchmark and the prompt it becomes."""

    benchmark: Benchmark
    item: Item
    prompt: str

    @property
    def key(self) -> Key:
        return self.benchmark.name, self.benchmark.language, self.item.index

    @property
    def has_image(self) -> bool:
        return self.item.image_bytes is not None

    @cached_property
    def digest(self) -> str:
        """What the model is shown and what is taken down beside its reply, in 16 hex digits: an answer to
        other content, or one marked by another key, is no answer to this."""
        item = replace(self.item, image_bytes=None)
        content = hashlib.sha256(json.dumps([self.prompt, asdict(item)]).encode())
        content.update(self.item.image_bytes or b"")
        return content.hexdigest()[:16]


Batch = list[Question]


def questions_of(
    benchmarks: Iterable[Benchmark], chat: ChatFormat, localised: bool = False
) -> list[Question]:
    """Every row of every benchmark with its prompt, in the files' order.

    `localised` puts the instruction of multiple choice in the benchmark's language. Raises UserError for a
    language that has none.
    """
    questions = []
    for benchmark in benchmarks:
        for item in benchmark.items:
            text = benchmark.format.ask(item, benchmark.language, localised)
            prompt = chat.prompt(text, with_image=item.image_bytes is not None)
            questions.append(Question(benchmark, item, prompt))
    return questions


def plan_batches(questions: Sequence[Question], prompter: Prompter, size: int) -> list[Batch]:
    """Batches of prompts of about one length, the longest first, so that too little memory shows at once.

    A batch holds questions of one benchmark in one language, so that another benchmark beside it leaves its
    batches, and what was answered of them, as they are; all with an image or all without.
    """
    kinds: dict[tuple[str, str, bool], list[tuple[int, Question]]] = defaultdict(list)
    for question, length in zip(questions, prompt_lengths(questions, prompter), strict=True):
        kinds[*question.key[:2], question.has_image].append((length, question))
    batches = []
    for own in kinds.values():
        own.sort(key=lambda pair: -pair[0])
        batches += [own[at : at + size] for at in range(0, len(own), size)]
    batches.sort(key=lambda batch: -batch[0][0])
    return [[question for _, question in batch] for batch in batches]


def plan_rounds(batches: Sequence[Batch], world: int) -> list[list[Batch]]:
    """The batches that the ranks run at the same time, one each; all with images or all without, for ranks
    that share weights (ZeRO-3) must run the same modules."""
    turns = []
    for with_image in (True, False):
        own = [batch for batch in batches if batch[0].has_image == with_image]
        turns += [own[at : at + world] for at in range(0, len(own), world)]
    return turns


def letter_tokens(prompter: Prompter, questions: Sequence[Question]) -> dict[str, int]:
    """Option letter → the token that a reply with that letter begins with, right after the prompt.

    Raises UserError if the letter does not begin a token there, or two letters begin with the same one.
    """
    choices = [question for question in questions if question.item.options]
    if not choices:
        return {}
    prompt, tokenizer = choices[0].prompt, prompter.tokenizer
    before = tokenizer(prompt).input_ids
    tokens: dict[str, int] = {}
    for letter in sorted({letter for question in choices for letter in question.item.options}):
        whole = tokenizer(prompt + prompter.chat.reply(letter)).input_ids
        if whole[: len(before)] != before or whole[len(before)] in tokens.values():
            raise UserError(
                f"option letter {letter}: the tokenizer gives it no token of its own after the prompt "
                f"({tokenizer.convert_ids_to_tokens(whole[len(before) - 1 :])}), so its logit cannot be "
                "read; use the tokenizer that belongs to the model"
            )
        tokens[letter] = whole[len(before)]
    return tokens


def check_prompts(
    benchmarks: Sequence[Benchmark],
    prompter: Prompter,
    positions: int,
    max_new_tokens: int,
    localised: bool = False,
) -> None:
    """What can be known of the prompts before ranks start; `positions` is the decoder's longest sequence.

    Raises UserError for an image placeholder in a text, a prompt that is too long, and option letters without
    a token.
    """
    questions = questions_of(benchmarks, prompter.chat, localised)
    letter_tokens(prompter, questions)
    placeholder = _placeholder(prompter)
    for question, length in zip(questions, prompt_lengths(questions, prompter), strict=True):
        where = f"{question.benchmark.path}: index {question.item.index}"
        if question.prompt.count(placeholder) != question.has_image:
            raise UserError(f"{where}: the text contains '{placeholder}'; remove it")
        if length + max_new_tokens > positions:
            raise UserError(
                f"{where}: {length} tokens of prompt and {max_new_tokens} of reply exceed the model's "
                f"{positions} positions; shorten the question or remove the row"
            )


def prompt_lengths(questions: Sequence[Question], prompter: Prompter) -> list[int]:
    """Tokens of each prompt with its image's."""
    if not questions:  # tokenizers refuse an empty list
        return []
    encoded = prompter.tokenizer([question.prompt for question in questions]).input_ids
    image = prompter.num_image_tokens - 1  # beside its placeholder
    return [len(ids) + image * q.has_image for q, ids in zip(questions, encoded, strict=True)]


def _placeholder(prompter: Prompter) -> str:
    return str(prompter.tokenizer.convert_ids_to_tokens(prompter.image_token))


def model_inputs(lvlm: Lvlm, prompter: Prompter, batch: Batch) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` [questions, tokens], `pixel_values` [images, 3, height, width] where
    there are images.

    Padded on the left, so that every row goes on from its last position.
    """
    placeholder = _placeholder(prompter)
    texts = [q.prompt.replace(placeholder, placeholder * prompter.num_image_tokens) for q in batch]
    encoded = prompter.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    images = [question.item.image for question in batch if question.has_image]
    return inputs | ({"pixel_values": lvlm.pixel_values(images)} if images else {})
