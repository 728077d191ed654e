"""A batch of questions → the model's replies and its option letters' logits, greedy, from one pass.

Padding and batch size move logits in their last digits, and where two tokens are that close the greedy reply
would depend on them. So a reply for which, at any step, the two highest logits are nearer than
`CLOSE` is given anew by the question alone, unpadded. What is recorded is then the reply of one question at a
time, for every batch size and number of ranks, as long as batching moves no logit by `CLOSE / 2`; float32
moves them by about 1e-5. In bfloat16, which moves them by more than tokens often differ, nothing is promised
and nothing done anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.prompts import Prompter
from plast_train.runtime.distributed import Ranks
from plast_train.scoring.questions import Batch, Question, model_inputs

CLOSE = 1e-3


@dataclass(frozen=True)
class Answer:
    """`option_logits` are None for an open question. `close`: batching could have decided."""

    reply: str
    option_logits: dict[str, float] | None
    close: bool


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
        answers = self._answers(batch)
        close = [i for i, answer in enumerate(answers) if answer.close] if len(batch) > 1 else []
        rounds = max(self.ranks.gather(len(close))) if self.synced else len(close)
        for number in range(rounds):
            at = close[number] if number < len(close) else 0
            (alone,) = self._answers([batch[at]])
            if number < len(close):
                answers[at] = alone
        return [record_of(question, answer) for question, answer in zip(batch, answers, strict=True)]

    def _answers(self, batch: Batch) -> list[Answer]:
        from transformers import StaticCache

        model: Any = self.lvlm.model
        inputs = model_inputs(self.lvlm, self.prompter, batch)
        inputs = {name: tensor.to(self.ranks.device) for name, tensor in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        # As long as these questions need, allocated once; transformers' own would be as long as any before's.
        length = inputs["input_ids"].shape[1] + self.max_new_tokens
        cache = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=length)
        output = model.generate(
            **inputs,
            past_key_values=cache,
            disable_compile=True,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # some families' own settings raise it
            max_new_tokens=self.max_new_tokens,
            output_logits=True,
            return_dict_in_generate=True,
            synced_gpus=self.synced,
        )
        generated = output.sequences[:, inputs["input_ids"].shape[1] :]
        replies = self.prompter.tokenizer.batch_decode(generated, skip_special_tokens=True)
        first = output.logits[0].float().cpu()
        exact = model.dtype == torch.float32
        close = _near_ties(output.logits, generated, _ends(model)) if exact else [False] * len(batch)
        answers = []
        for question, reply, near, row in zip(batch, replies, close, first, strict=True):
            letters = question.item.options
            logits = {letter: row[self.letters[letter]].item() for letter in letters}
            near = near or (exact and _close_letters(logits))
            answers.append(Answer(reply.strip(), logits or None, near))
        return answers


def _ends(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends]


def _near_ties(logits: tuple[torch.Tensor, ...], generated: torch.Tensor, ends: list[int]) -> list[bool]:
    """For each question whether its two highest logits came near at a step up to its reply's end.

    `logits`: for each step `[questions, vocabulary]`; `generated`: `[questions, steps]`.
    """
    highest = torch.stack([step.float().topk(2).values for step in logits], dim=1)  # [questions, steps, 2]
    near = highest[..., 0] - highest[..., 1] < CLOSE
    ended = torch.isin(generated, torch.tensor(ends, device=generated.device)).int()
    before_end = ended.cumsum(1) - ended == 0
    found: list[bool] = (near & before_end[:, : near.shape[1]]).any(1).tolist()
    return found


def _close_letters(logits: dict[str, float]) -> bool:
    highest = sorted(logits.values(), reverse=True)
    return len(highest) > 1 and highest[0] - highest[1] < CLOSE


def record_of(question: Question, answer: Answer) -> dict[str, Any]:
    """The prediction's record, in VLMEvalKit's columns first: each option has its letter's column, too."""
    logits = answer.option_logits
    if logits is not None and not all(map(math.isfinite, logits.values())):
        raise FloatingPointError(f"{question.key}: option logits {logits}; the weights are not sound")
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
        "prediction": answer.reply,
        "matched": question.benchmark.format.match(item, answer.reply),
        "option_logits": logits,
        "options": item.options,
        "answers": list(item.answers),
        "group": item.group,
        "pair": item.pair,
        "digest": question.digest,
    }
