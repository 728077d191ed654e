"""Letting a model answer benchmarks: greedy generation in batches, over all ranks, resumable.

The batches are cut from all questions of a benchmark before ranks share them out: what a batch holds
depends neither on the number of ranks nor on where an earlier run was stopped. That replies do not depend on
the batch size either is `answering`'s work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plast_train.errors import Interrupted
from plast_train.evaluation.answering import Answerer
from plast_train.evaluation.predictions import append_part, key_of, open_parts
from plast_train.lvlm.loading import Lvlm
from plast_train.runtime.distributed import Ranks
from plast_train.scoring.questions import letter_tokens, plan_batches, plan_rounds, questions_of
from plast_train.tasks.benchmark import Benchmark


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

    The model is called `name` in the records. `settings` are what the answers depend on beside the questions
    (see `open_parts`). `localised` puts the instruction in each benchmark's language.
    `synced` is for weights spread over the ranks (ZeRO-3), which must then all run the same number of batches
    and steps. Called by every rank; what was answered before is kept.

    Raises:
        Interrupted: a rank was told to stop; what was answered is on the disk.
        UserError: the tokenizer has no token of its own for an option letter.
    """
    prompter = lvlm.prompter([])
    questions = questions_of(benchmarks, prompter.chat, localised)
    letters = letter_tokens(prompter, questions)
    digests = {question.key: question.digest for question in questions}
    answered = ranks.broadcast(open_parts(parts, settings, digests) if ranks.is_first else None)
    batches = plan_batches(questions, prompter, batch_size)
    todo = [batch for batch in batches if any(question.key not in answered for question in batch)]
    answerer = Answerer(lvlm, prompter, letters, max_new_tokens, synced, ranks)

    lvlm.model.eval()
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
    ranks.barrier()
