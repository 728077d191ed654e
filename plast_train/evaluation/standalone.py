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

import torch

from plast_train.evaluation.answering import answer_benchmarks
from plast_train.evaluation.predictions import publish_results
from plast_train.evaluation.request import EvaluationRequest, request_path
from plast_train.lvlm.loading import load_lvlm
from plast_train.run_folder import RunFolder, read_json
from plast_train.runtime.distributed import Ranks, end_ranks
from plast_train.runtime.rank import run_rank
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
    config = request.config.evaluate
    benchmarks = benchmarks_of(config)
    for name, description in request.models.items():
        ranks.say(f"loading {description['path']}")
        lvlm = load_lvlm(description, request.config.model, ranks.device, None)
        answer_benchmarks(
            lvlm,
            benchmarks,
            config,
            name=name,
            weights=description["fingerprint"],
            parts=run.evaluation / "parts" / name,
            ranks=ranks,
            synced=False,
        )
        # Models may differ in more than some layers, so each is loaded whole; two at once may not fit.
        del lvlm
        gc.collect()
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
    if ranks.is_first:
        publish_results(run.evaluation, benchmarks, list(request.models), config.matching)
    ranks.barrier()  # no rank ends while the first still writes: the launcher reads the results then


if __name__ == "__main__":
    end_ranks(main(sys.argv[1:]))
