"""Letting a model answer benchmarks: greedy generation in batches over all ranks, resumable; from one pass a
batch's replies and its option letters' logits.

The batches are cut from all questions of a benchmark before ranks share them out: what a batch holds depends
neither on the number of ranks nor on where an earlier run was stopped.

Padding and batch size move logits in their last digits, and where two tokens are that close the greedy reply
would depend on them. So a question for which, at any step, the two highest logits are nearer than
`NEAR_TIE` is asked again alone, unpadded. What is recorded is then the reply to one question at a time, for
every batch size and number of ranks, as long as batching moves no logit by `NEAR_TIE / 2`. In bfloat16,
which moves logits by more than tokens often differ, nothing is promised and no question is asked again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plast_train.config import EvaluateConfig
from plast_train.errors import Interrupted
from plast_train.evaluation.predictions import answers_depend_on, append_part, key_of, open_parts
from plast_train.lvlm.attention import set_attention
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.prompts import Prompter
from plast_train.runtime.distributed import Ranks
from plast_train.scoring.questions import (
    Batch,
    Question,
    letter_tokens,
    model_inputs,
    plan_batches,
    plan_rounds,
    questions_of,
)
from plast_train.tasks.benchmark import Benchmark

# Batching moves float32 logits by about 1e-5 (measured on the tiny model, tests hold it below 2.5e-4); 1e-3
# leaves a margin and few questions fall below it.
NEAR_TIE = 1e-3


def answer_benchmarks(
    lvlm: Lvlm,
    benchmarks: Sequence[Benchmark],
    config: EvaluateConfig,
    *,
    name: str,
    weights: str,
    parts: Path,
    ranks: Ranks,
    synced: bool,
) -> None:
    """Answers every row of the benchmarks; each rank appends its records to its own file in `parts`.

    The model is called `name` in the records; `weights` identifies its weights by their content. `synced` is
    for weights spread over the ranks (ZeRO-3), which must then all run the same number of batches and steps.
    Called by every rank; what was answered before is kept.

    Raises:
        Interrupted: a stop signal came; what was answered is on the disk.
        UserError: the tokenizer has no token of its own for an option letter.
    """
    # Generation decodes one token at a time, which block-sparse attention is not made for.
    set_attention(lvlm.model, "sdpa")
    lvlm.model.eval()
    prompter = lvlm.prompter([])
    questions = questions_of(benchmarks, prompter.chat, config.localised_instruction)
    letters = letter_tokens(prompter, questions)
    answerer = Answerer(lvlm, prompter, letters, config.max_new_tokens, synced, ranks)
    digests = {question.key: question.digest for question in questions}
    settings = answers_depend_on(config, str(lvlm.model.dtype).removeprefix("torch."), weights)
    answered = ranks.broadcast(open_parts(parts, settings, digests) if ranks.is_first else None)
    # A batch is run as it was cut even if part of it is answered, so that padding is as in an unbroken run.
    batches = plan_batches(questions, prompter, config.batch_size)
    todo = [batch for batch in batches if any(question.key not in answered for question in batch)]
    with ranks.progress(f"evaluate {name}", len(questions), "questions", len(answered)) as progress:
        for round_ in plan_rounds(todo, ranks.world):
            if ranks.should_stop():
                raise Interrupted(
                    f"evaluating {name}: {progress.done} of {len(questions)} questions answered"
                )
            if ranks.rank < len(round_):
                records = [{"model": name, **record} for record in answerer.records(round_[ranks.rank])]
                append_part(parts, ranks.rank, [r for r in records if key_of(r) not in answered])
            elif synced:  # no batch left for this rank, but the others need its share of the weights
                answerer.records(round_[-1])
            progress.add(sum(question.key not in answered for batch in round_ for question in batch))
    ranks.barrier()  # the parts are complete only when the slowest rank has written its last record


@dataclass(frozen=True)
class Answerer:
    """`letters` are the option letters' tokens. `synced` is for weights spread over the ranks (ZeRO-3): every
    rank must then call together and run equally many steps."""

    lvlm: Lvlm
    prompter: Prompter
    letters: dict[str, int]
    max_new_tokens: int
    synced: bool
    ranks: Ranks

    def records(self, batch: Batch) -> list[dict[str, Any]]:
        """One record a question, in the batch's order."""
        records, near_ties = self._answer(batch)
        again = [i for i, near in enumerate(near_ties) if near] if len(batch) > 1 else []
        # Under ZeRO-3 every rank runs as many passes as the rank with the most near-ties: each pass gathers
        # the weights from all ranks, so one without a question of its own repeats its first, for nothing.
        passes = max(self.ranks.gather(len(again))) if self.synced else len(again)
        for number in range(passes):
            at = again[number] if number < len(again) else 0
            (alone,), _ = self._answer([batch[at]])
            if number < len(again):
                records[at] = alone
        return records

    def _answer(self, batch: Batch) -> tuple[list[dict[str, Any]], list[bool]]:
        """The records, and for each question whether batching could have decided its reply or option."""
        from transformers import StaticCache

        model: Any = self.lvlm.model
        inputs = model_inputs(self.lvlm, self.prompter, batch)
        inputs = {name: tensor.to(self.ranks.device) for name, tensor in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        prompt_length = inputs["input_ids"].shape[1]
        # As long as these questions need, allocated once. transformers' own static cache is kept in the model
        # from batch to batch at the largest length so far, and padding to another length moves logits.
        cache = StaticCache(
            model.config.get_text_config(decoder=True), max_cache_len=prompt_length + self.max_new_tokens
        )
        output = model.generate(
            **inputs,
            past_key_values=cache,
            disable_compile=True,  # each batch has another shape: compiling would cost more than it saves
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # some families' own settings raise it
            max_new_tokens=self.max_new_tokens,
            output_logits=True,
            return_dict_in_generate=True,
            synced_gpus=self.synced,
        )
        generated = output.sequences[:, prompt_length:]
        replies = self.prompter.tokenizer.batch_decode(generated, skip_special_tokens=True)
        # The letters are compared where the reply begins: at the first generated position.
        first = output.logits[0].float().cpu()
        options = [
            {letter: row[self.letters[letter]].item() for letter in question.item.options}
            for question, row in zip(batch, first, strict=True)
        ]
        records = [
            record_of(question, reply.strip(), logits or None)
            for question, reply, logits in zip(batch, replies, options, strict=True)
        ]
        if model.dtype != torch.float32:
            return records, [False] * len(batch)
        ends = model.generation_config.eos_token_id
        near = near_ties(output.logits, generated, ends if isinstance(ends, list) else [ends])
        for i, logits in enumerate(options):
            highest = sorted(logits.values(), reverse=True)[:2]
            near[i] |= len(highest) == 2 and highest[0] - highest[1] < NEAR_TIE
        return records, near


def near_ties(logits: tuple[torch.Tensor, ...], generated: torch.Tensor, ends: list[int]) -> list[bool]:
    """For each question whether its two highest logits came near at a step up to its reply's end.

    `logits`: for each step `[questions, vocabulary]`; `generated`: `[questions, steps]`; `ends`: the tokens
    that end a reply.
    """
    highest = torch.stack([step.float().topk(2).values for step in logits], dim=1)  # [questions, steps, 2]
    near = highest[..., 0] - highest[..., 1] < NEAR_TIE
    ended = torch.isin(generated, torch.tensor(ends, device=generated.device)).int()
    # The step that chose the end token counts: with the other token the reply would have been longer.
    before_end = ended.cumsum(1) - ended == 0
    found: list[bool] = (near & before_end[:, : near.shape[1]]).any(1).tolist()
    return found


def record_of(question: Question, reply: str, logits: dict[str, float] | None) -> dict[str, Any]:
    """The prediction's record, in VLMEvalKit's columns first: each option has its letter's column, too.
    `logits` are those of the option letters, None for an open question.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    if logits is not None and not all(map(math.isfinite, logits.values())):
        raise FloatingPointError(
            f"{question.key}: the option logits are {logits}, so the weights are not sound"
        )
    benchmark, language, index = question.key
    item = question.item
    return {
        "benchmark": benchmark,
        "language": language,
        "index": index,
        "question": item.question,
        "hint": item.hint,
        **item.options,
        "answer": item.answer,
        "category": item.category,
        "l2-category": item.l2_category,
        "prediction": reply,
        "matched": question.benchmark.format.match(item, reply),
        "option_logits": logits,
        "options": item.options,
        "answers": list(item.answers),
        "group": item.group,
        "pair": item.pair,
        "digest": question.digest,
    }
