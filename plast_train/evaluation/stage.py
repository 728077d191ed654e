"""The stage `evaluate`: the same benchmarks for the base and for what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plast_train.context import Context
from plast_train.evaluation.evaluate import evaluate as answer
from plast_train.evaluation.predictions import answers_depend_on, publish_results
from plast_train.lvlm.forward import forward_ready
from plast_train.lvlm.freezing import changed_weights
from plast_train.lvlm.weights import load_weights
from plast_train.run_folder import read_json
from plast_train.scoring.accuracies import BASE, TRAINED
from plast_train.stages import inputs_of
from plast_train.tasks.registry import benchmarks_of


def evaluate(context: Context) -> list[Path]:
    """Writes `evaluation/predictions/`, `results.json` and `comparisons.json` (see `publish_results`).

    Raises:
        Interrupted: a stop signal came; what was answered is kept.
        UserError: the tokenizer has no token of its own for an option letter.
    """
    config, run, ranks, lvlm = context.config, context.run, context.ranks, context.lvlm
    benchmarks = benchmarks_of(config.evaluate)
    changed = names_of_changed(context)
    # Generation decodes one token at a time, which block-sparse attention is not made for.
    set_attention: Any = lvlm.model.set_attn_implementation
    set_attention("sdpa")
    for name, folder in ((BASE, lvlm.path), (TRAINED, run.export)):
        load_weights(lvlm, folder, changed, ranks)
        with forward_ready(lvlm.model, context.deepspeed):
            answer(
                lvlm,
                benchmarks,
                name=name,
                parts=run.evaluation / "parts" / name,
                settings=_depends_on(context, name),
                ranks=ranks,
                batch_size=config.evaluate.batch_size,
                max_new_tokens=config.evaluate.max_new_tokens,
                localised=config.evaluate.localised_instruction,
                synced=context.partitioned,
            )
    if ranks.is_first:
        publish_results(run.evaluation, benchmarks, [BASE, TRAINED], config.evaluate.matching)
    return [run.results, run.evaluation / "comparisons.json", run.evaluation / "predictions"]


def names_of_changed(context: Context) -> list[str]:
    """The parameters in which the trained model differs from the base."""
    selection, lvlm, train = read_json(context.run.selection), context.lvlm, context.config.train
    layers, modules = selection["selected_layers"], selection["modules"]
    return list(changed_weights(lvlm.model, lvlm.family, layers, modules, train, context.trains_projector))


def _depends_on(context: Context, name: str) -> dict[str, Any]:
    """What a model's answers depend on beside the questions; those of the base outlive another training."""
    inputs = inputs_of("evaluate", context.config, context.run, context.base)
    assert inputs is not None
    weights = inputs["export"] if name == TRAINED else context.base["fingerprint"]
    return answers_depend_on(context.config.evaluate, context.config.model.dtype, weights)
