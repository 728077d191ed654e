"""What every rank runs for `plast evaluate MODEL --benchmarks …`: models answering benchmarks, outside a run.

Started by the launcher through torchrun as `python -m plast_train.evaluation.standalone DIR`, after it has
checked everything and written DIR/evaluate.json.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from plast_train.evaluation.evaluate import evaluate
from plast_train.evaluation.predictions import answers_depend_on, publish_results
from plast_train.evaluation.request import EvaluationRequest, request_path
from plast_train.lvlm.loading import load_lvlm
from plast_train.run_folder import RunFolder, read_json
from plast_train.runtime.distributed import Ranks, end_ranks
from plast_train.runtime.rank import run_rank
from plast_train.tasks.benchmark import Benchmark
from plast_train.tasks.registry import benchmarks_of


def main(arguments: Sequence[str]) -> int:
    """One rank of an evaluation: `DIR`. Returns the exit code, as `run_rank` does."""
    run = RunFolder(Path(arguments[0]))
    return run_rank(run, partial(evaluate_models, run))


def evaluate_models(run: RunFolder, ranks: Ranks) -> None:
    """Writes `evaluation/predictions/`, `results.json` and, of two models, `comparisons.json`.

    Raises:
        Interrupted: a stop signal came; what was answered is kept.
        UserError: a model cannot be loaded.
    """
    ranks.watchdog.stage = "evaluate"
    request = ranks.on_first(lambda: EvaluationRequest.model_validate(read_json(request_path(run))))
    benchmarks = benchmarks_of(request.config.evaluate)
    for name, description in request.models.items():
        _answer(run, ranks, request, name, description, benchmarks)
    if ranks.is_first:
        publish_results(run.evaluation, benchmarks, list(request.models), request.config.evaluate.matching)
    ranks.barrier()


def _answer(
    run: RunFolder,
    ranks: Ranks,
    request: EvaluationRequest,
    name: str,
    description: dict[str, Any],
    benchmarks: Sequence[Benchmark],
) -> None:
    """Loads a model, lets it answer, and frees its memory for the next."""
    config = request.config.evaluate
    ranks.say(f"loading {description['path']}")
    lvlm = load_lvlm(description, request.config.model, ranks.device, None)
    # Generation decodes one token at a time, which block-sparse attention is not made for.
    set_attention: Any = lvlm.model.set_attn_implementation
    set_attention("sdpa")
    evaluate(
        lvlm,
        benchmarks,
        name=name,
        parts=run.evaluation / "parts" / name,
        settings=answers_depend_on(config, request.config.model.dtype, description["fingerprint"]),
        ranks=ranks,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        localised=config.localised_instruction,
        synced=False,
    )
    del lvlm
    gc.collect()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    end_ranks(main(sys.argv[1:]))
