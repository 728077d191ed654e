"""Letting a model answer benchmarks: greedy generation in batches, over all ranks, resumable.

The batches are cut from all questions, longest first, before they are dealt to ranks: what a batch holds
(and so its padding, which moves logits in the last digits) depends neither on the number of ranks nor on
where an earlier run was stopped. The option letters' logits are those of the first generated step, so both
scores come from one pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plast_train.distributed import Ranks
from plast_train.errors import Interrupted, UserError
from plast_train.evaluation.benchmarks import Benchmark, Item
from plast_train.evaluation.matching import RULES, match_reply
from plast_train.evaluation.predictions import Key, append_part, key_of, open_parts
from plast_train.evaluation.prompts import multiple_choice_text
from plast_train.lvlm.families import ChatFormat
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.prompts import Prompter


@dataclass(frozen=True)
class Question:
    """A row of a benchmark and the prompt it becomes."""

    benchmark: Benchmark
    item: Item
    prompt: str

    @property
    def key(self) -> Key:
        return self.benchmark.name, self.benchmark.language, self.item.index


Batch = list[Question]


def evaluate(
    lvlm: Lvlm,
    benchmarks: Sequence[Benchmark],
    *,
    name: str,
    parts: Path,
    settings: dict[str, Any],
    ranks: Ranks,
    batch_size: int,
    max_new_tokens: int,
    synced: bool,
    localised: bool = False,
) -> None:
    """Answers every row of the benchmarks; each rank appends its records to its own file in `parts`.

    The model is called `name` in the records. `settings` are what the answers depend on (see `open_parts`).
    `localised` puts the instruction in each benchmark's language.
    `synced` is for weights spread over the ranks (ZeRO-3), which must then all run the same number of batches
    and steps. Called by every rank; what was answered before is kept.

    Raises:
        Interrupted: a rank was told to stop; what was answered is on the disk.
        UserError: the tokenizer has no token of its own for an option letter.
    """
    prompter = lvlm.prompter([])
    questions = questions_of(benchmarks, prompter.chat, localised)
    letters = letter_tokens(prompter, questions)
    answered = ranks.broadcast(open_parts(parts, settings) if ranks.is_first else None)
    batches = plan_batches(questions, prompter, batch_size)
    todo = [batch for batch in batches if any(question.key not in answered for question in batch)]

    lvlm.model.eval()

    def answer(batch: Batch) -> list[dict[str, Any]]:
        return _answer(lvlm, prompter, batch, letters, max_new_tokens, synced, ranks.device)

    with ranks.progress(f"evaluate {name}", len(questions), "questions", len(answered)) as progress:
        for start in range(0, len(todo), ranks.world):
            if ranks.should_stop():
                raise Interrupted(
                    f"evaluating {name}: {progress.done} of {len(questions)} questions answered"
                )
            turn = todo[start : start + ranks.world]
            if ranks.rank < len(turn):
                records = [{"model": name, **record} for record in answer(turn[ranks.rank])]
                append_part(parts, ranks.rank, [r for r in records if key_of(r) not in answered])
            elif synced:  # no batch left for this rank, but the others need its share of the weights
                answer(turn[-1])
            progress.add(sum(question.key not in answered for batch in turn for question in batch))
    ranks.barrier()


def questions_of(
    benchmarks: Iterable[Benchmark], chat: ChatFormat, localised: bool = False
) -> list[Question]:
    """Every row of every benchmark with its prompt, in the files' order.

    Raises UserError for a localised instruction in a language that has none.
    """
    questions = []
    for benchmark in benchmarks:
        for item in benchmark.items:
            language = benchmark.language if localised else None
            text = multiple_choice_text(item.question, item.options, item.hint, language)
            questions.append(Question(benchmark, item, chat.prompt(text, with_image=True)))
    return questions


def plan_batches(questions: Sequence[Question], prompter: Prompter, size: int) -> list[Batch]:
    """Batches of prompts of about one length; the longest first, so that too little memory shows at once."""
    lengths = _lengths(questions, prompter)
    order = sorted(range(len(questions)), key=lambda i: -lengths[i])
    return [[questions[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def letter_tokens(prompter: Prompter, questions: Sequence[Question]) -> dict[str, int]:
    """Option letter → the token that a reply with that letter begins with, right after the prompt.

    Raises UserError if the letter does not begin a token there, or two letters begin with the same one.
    """
    if not questions:
        return {}
    prompt, tokenizer = questions[0].prompt, prompter.tokenizer
    before = tokenizer(prompt).input_ids
    tokens: dict[str, int] = {}
    for letter in sorted({letter for question in questions for letter in question.item.options}):
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

    Raises UserError for two files of one benchmark and language, an image placeholder in a text, a prompt
    that is too long, and option letters without a token.
    """
    seen: dict[tuple[str, str], Path] = {}
    for benchmark in benchmarks:
        other = seen.setdefault((benchmark.name, benchmark.language), benchmark.path)
        if other is not benchmark.path:
            raise UserError(f"{benchmark.path}: same benchmark and language as {other}; rename or remove one")
    questions = questions_of(benchmarks, prompter.chat, localised)
    letter_tokens(prompter, questions)
    placeholder = _placeholder(prompter)
    for question, length in zip(questions, _lengths(questions, prompter), strict=True):
        where = f"{question.benchmark.path}: index {question.item.index}"
        if question.prompt.count(placeholder) != 1:
            raise UserError(f"{where}: the text contains '{placeholder}'; remove it")
        if length + max_new_tokens > positions:
            raise UserError(
                f"{where}: {length} tokens of prompt and {max_new_tokens} of reply exceed the model's "
                f"{positions} positions; shorten the question or remove the row"
            )


def _lengths(questions: Sequence[Question], prompter: Prompter) -> list[int]:
    """Tokens of each prompt with its image's."""
    if not questions:  # tokenizers refuse an empty list
        return []
    encoded = prompter.tokenizer([question.prompt for question in questions]).input_ids
    return [len(ids) - 1 + prompter.image_tokens for ids in encoded]


def _placeholder(prompter: Prompter) -> str:
    return str(prompter.tokenizer.convert_ids_to_tokens(prompter.image_token))


def model_inputs(lvlm: Lvlm, prompter: Prompter, batch: Batch) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` [questions, tokens], `pixel_values` [questions, 3, height, width].

    Padded on the left, so that every row goes on from its last position.
    """
    placeholder = _placeholder(prompter)
    texts = [q.prompt.replace(placeholder, placeholder * prompter.image_tokens) for q in batch]
    encoded = prompter.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    return {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "pixel_values": lvlm.pixel_values([question.item.image for question in batch]),
    }


def _answer(
    lvlm: Lvlm,
    prompter: Prompter,
    batch: Batch,
    letters: dict[str, int],
    max_new_tokens: int,
    synced: bool,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One record per question of the batch."""
    model: Any = lvlm.model
    inputs = {name: tensor.to(device) for name, tensor in model_inputs(lvlm, prompter, batch).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    output = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # some families' own settings raise it
        max_new_tokens=max_new_tokens,
        output_logits=True,
        return_dict_in_generate=True,
        synced_gpus=synced,
    )
    generated = output.sequences[:, inputs["input_ids"].shape[1] :]
    replies = prompter.tokenizer.batch_decode(generated, skip_special_tokens=True)
    logits = output.logits[0].float().cpu()
    records = []
    for question, reply, row in zip(batch, replies, logits, strict=True):
        option_logits = {letter: row[letters[letter]].item() for letter in question.item.options}
        records.append(_record(question, reply.strip(), option_logits))
    return records


def _record(question: Question, reply: str, option_logits: dict[str, float]) -> dict[str, Any]:
    if not all(map(math.isfinite, option_logits.values())):
        raise FloatingPointError(f"{question.key}: option logits {option_logits}; the weights are not sound")
    benchmark, language, index = question.key
    item = question.item
    return {
        "benchmark": benchmark,
        "language": language,
        "index": index,
        "group": item.group,
        "category": item.category,
        "l2_category": item.l2_category,
        "question": item.question,
        "options": item.options,
        "answer": item.answer,
        "prediction": reply,
        "matched": {rule: match_reply(reply, item.options, rule) for rule in RULES},
        "option_logits": option_logits,
    }
