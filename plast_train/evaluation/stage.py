"""The stage `evaluate`: the same benchmarks for the base and for what was trained."""

from __future__ import annotations

from pathlib import Path

from plast_train.context import Context
from plast_train.evaluation.answering import answer_benchmarks
from plast_train.evaluation.predictions import publish_results
from plast_train.lvlm.forward import forward_ready
from plast_train.lvlm.weights import load_weights
from plast_train.scoring.records import BASE, TRAINED
from plast_train.stages import inputs_of
from plast_train.tasks.registry import benchmarks_of


def evaluate(context: Context) -> list[Path]:
    """Writes `evaluation/predictions/`, `results.json` and `comparisons.json` (see `publish_results`).

    Raises:
        Interrupted: a stop signal came; what was answered is kept.
        UserError: the tokenizer has no token of its own for an option letter.
    """
    config, run, ranks, lvlm = context.config.evaluate, context.run, context.ranks, context.lvlm
    inputs = inputs_of("evaluate", context.config, run, context.base)
    assert inputs is not None, "the stage ran before the stages it needs"
    benchmarks = benchmarks_of(config)
    changed = context.changed_parameters()
    # The base's answers depend on the base alone, so they are kept when something else is trained from it.
    for name, folder, weights in (
        (BASE, lvlm.path, context.base["fingerprint"]),
        (TRAINED, run.export, inputs["export"]),
    ):
        load_weights(lvlm, folder, changed, ranks)
        with forward_ready(lvlm.model, context.deepspeed):
            answer_benchmarks(
                lvlm,
                benchmarks,
                config,
                name=name,
                weights=weights,
                parts=run.evaluation / "parts" / name,
                ranks=ranks,
                synced=context.partitioned,
            )
    if ranks.is_first:
        publish_results(run.evaluation, benchmarks, [BASE, TRAINED], config.matching)
    return [run.results, run.evaluation / "comparisons.json", run.evaluation / "predictions"]
