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

from plast_train.distributed import Ranks, end_ranks
from plast_train.evaluation.asked import Asked, asked_path
from plast_train.evaluation.benchmarks import Benchmark, benchmarks_of
from plast_train.evaluation.evaluate import evaluate
from plast_train.evaluation.predictions import answers_depend_on, publish_results
from plast_train.lvlm.loading import load_lvlm
from plast_train.pipeline import live
from plast_train.run_folder import RunFolder, read_json


def main(arguments: Sequence[str]) -> int:
    """One rank of an evaluation: `DIR`. Returns the exit code, as `live` does."""
    run = RunFolder(Path(arguments[0]))
    return live(run, partial(evaluate_models, run))


def evaluate_models(run: RunFolder, ranks: Ranks) -> None:
    """Writes `evaluation/predictions/`, `results.json` and, of two models, `comparisons.json`.

    Raises:
        Interrupted: a stop signal came; what was answered is kept.
        UserError: a model cannot be loaded.
    """
    ranks.watchdog.stage = "evaluate"
    asked = ranks.on_first(lambda: Asked.model_validate(read_json(asked_path(run))))
    benchmarks = benchmarks_of(asked.config.evaluate)
    for name, description in asked.models.items():
        _answer(run, ranks, asked, name, description, benchmarks)
    if ranks.is_first:
        publish_results(run.evaluation, benchmarks, list(asked.models), asked.config.evaluate.matching)
    ranks.barrier()


def _answer(
    run: RunFolder,
    ranks: Ranks,
    asked: Asked,
    name: str,
    description: dict[str, Any],
    benchmarks: Sequence[Benchmark],
) -> None:
    """Loads a model, lets it answer, and frees its memory for the next."""
    config = asked.config.evaluate
    ranks.say(f"loading {description['path']}")
    lvlm = load_lvlm(description, asked.config.model, ranks.device, None)
    # Generation decodes one token at a time, which block-sparse attention is not made for.
    set_attention: Any = lvlm.model.set_attn_implementation
    set_attention("sdpa")
    evaluate(
        lvlm,
        benchmarks,
        name=name,
        parts=run.evaluation / "parts" / name,
        settings=answers_depend_on(config, asked.config.model.dtype, description["fingerprint"]),
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
