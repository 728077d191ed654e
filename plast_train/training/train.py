"""The training stage: trains the selected layers on question-translation pairs."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from plast_train.checkpoint import resume
from plast_train.checkpoint.format import Identity
from plast_train.checkpoint.restore import restore
from plast_train.checkpoint.save import Saver, host_memory
from plast_train.context import Context
from plast_train.data.mixing import by_difficulty, language_shares, some_of_each_template
from plast_train.data.questions import Record
from plast_train.data.sampling import TrainingPlan, plan_training, split_records
from plast_train.data.token_tree import TokenSequence
from plast_train.errors import Diverged
from plast_train.lvlm.freezing import changed_weights, freeze_all_but, what_is_trained
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.lora import add_adapters
from plast_train.run_folder import publish_text, read_json, to_json
from plast_train.stages import settings_of
from plast_train.training.engine import build_engine, release_engine
from plast_train.training.flops import shape_of as model_shape
from plast_train.training.freezing_proof import (
    describe_freezing,
    frozen_hashes,
    require_gradients,
    require_unchanged,
    shape_of,
)
from plast_train.training.loop import run_loop
from plast_train.training.losses import Validation, pair_losses
from plast_train.training.meters import reset_peak_memory
from plast_train.training.state import Training


def train(context: Context) -> list[Path]:
    """Trains from the base or the newest checkpoint to the end of the plan. The model keeps the trained
    weights, all of them frozen; LoRA adapters are removed again and are only in the checkpoint.

    Raises:
        Diverged: see `run_loop`; the model is released as after the end.
        UserError: see `run_loop`, `resume.choose`, `save.write`.
        Interrupted: stopped by a signal, after saving.
    """
    ranks, run = context.ranks, context.run
    selection = read_json(run.selection)
    layers, modules = list(selection["selected_layers"]), selection["modules"]
    lvlm = context.lvlm
    reset_peak_memory(ranks.device)
    plan, held = plan_samples(context)
    trained = parameters_to_train(context, layers, modules)
    freeze_all_but(lvlm.model, trained)
    proof = describe_freezing(lvlm.model, trained)
    ranks.say(
        f"training {what_is_trained(context.config.train, layers, modules)}: "
        f"{proof['trained_parameters']:,} parameters in "
        f"{len(trained)} tensors, {proof['trained_fraction']:.2%} of all; "
        f"{proof['frozen_parameters']:,} are frozen"
    )
    before = frozen_hashes(lvlm.model, trained)

    training = _prepare(context, plan, held, trained, layers, modules)
    start = _resume(training)
    try:
        with _recomputing(lvlm, layers) if context.config.train.recompute else nullcontext():
            run_loop(training, start)
    except Diverged:
        training.saver.close()
        release_engine(training.engine, lvlm.model)
        raise

    require_gradients(training, len(training.plan.steps))
    require_unchanged(before, frozen_hashes(lvlm.model, trained), ranks)
    ranks.say(f"frozen tensors are unchanged bit for bit ({len(before)} compared by SHA-256)")
    proof |= {"frozen_tensors_unchanged": len(before), "every_trained_tensor_had_a_gradient": True}
    record = run.path / "freezing.json"
    if ranks.is_first:
        publish_text(record, to_json(proof))
    release_engine(training.engine, lvlm.model)
    assert training.saver.last is not None
    return [training.saver.last, run.metrics, record]


def plan_samples(context: Context) -> tuple[TrainingPlan, list[list[TokenSequence]]]:
    """The planned steps, and the samples of each held-back record. Called by every rank while the model
    is the base: `sampling.keep` measures with it how hard the pairs are.

    Raises:
        Interrupted: see `pair_losses`.
    """
    config, records, sampling = context.config, context.records, context.config.sampling
    numbers, held_back = split_records(len(records), config.train.validation_records, config.seed)
    if sampling.per_template is not None:
        english = [record.questions["en"] for record in records]
        numbers = some_of_each_template(english, numbers, sampling.per_template, config.seed)
    samples = list(context.prompter.translations(records, numbers, config.train))
    held = list(context.prompter.translations(records, held_back, config.train))
    if sampling.keep_by is not None:
        samples = by_difficulty(samples, pair_losses(context, samples), sampling)
    overlap = read_json(context.run.summary)["overlap"] if sampling.languages == "overlap" else {}
    shares = language_shares(samples, sampling, config.data.languages, overlap)
    if shares is not None:
        text = ", ".join(f"{config.data.languages[k]} {share:.1%}" for k, share in shares.items())
        context.ranks.say(f"shares of the languages in an epoch: {text}")
    plan = plan_training(
        samples,
        config.train.global_batch,
        config.train.tokens_per_row,
        config.seed,
        config.train.epochs,
        config.train.max_steps,
        shares,
    )
    return plan, held


def parameters_to_train(context: Context, layers: list[int], modules: str) -> dict[str, Parameter]:
    """What `train.method` trains, by name; under `lora` the adapters, which are put into the model here."""
    config, lvlm = context.config, context.lvlm
    if config.train.method == "lora":
        return add_adapters(lvlm.model, lvlm.family, layers, modules, config.train, config.seed)
    return changed_weights(lvlm.model, lvlm.family, layers, modules, config.train, context.trains_projector)


def _prepare(
    context: Context,
    plan: TrainingPlan,
    held: list[list[TokenSequence]],
    trained: dict[str, Parameter],
    layers: list[int],
    modules: str,
) -> Training:
    config, ranks, lvlm = context.config, context.ranks, context.lvlm
    validation = Validation(held, config.data.languages, config.train.tokens_per_row, lvlm, ranks)
    micro_steps = -(-plan.rows_per_step // ranks.world)
    shapes = {name: shape_of(parameter) for name, parameter in trained.items()}
    settings = settings_of("train", config) | {"data": _digest(plan, context.records)}
    identity = Identity(lvlm.fingerprint, layers, modules, shapes, settings)
    engine = build_engine(lvlm.model, trained, config, ranks.world, micro_steps)
    memory = host_memory(engine, trained)
    return Training(
        config=config,
        run=context.run,
        ranks=ranks,
        lvlm=lvlm,
        records=context.records,
        plan=plan,
        validation=validation,
        engine=engine,
        trained=trained,
        identity=identity,
        shape=model_shape(lvlm.config),
        saver=Saver(context.run.checkpoints, identity, config.checkpoint.keep, ranks, memory),
    )


def _resume(training: Training) -> int:
    """The step to resume from, after loading the checkpoint that was chosen, if any."""
    ranks = training.ranks
    # What this process did before differs between a run in one go and a resumed one, so random numbers start
    # from the seed here; a checkpoint brings its own state.
    torch.manual_seed(training.config.seed + ranks.rank)
    found = resume.choose(training.run.checkpoints, training.identity, ranks)
    if found is None:
        return 0
    training.saver.last = found
    step = restore(found, training.engine, training.trained, ranks)
    ranks.say(f"resumed from {found} (step {step} of {len(training.plan.steps)})")
    return step


@contextmanager
def _recomputing(lvlm: Lvlm, layers: list[int]) -> Iterator[None]:
    """Recomputes activations inside the layers that carry a gradient; the ones below keep none anyway."""
    carrying: list[Any] = lvlm.family.layers(lvlm.model)[min(layers) :]
    for layer in carrying:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in carrying:
            del layer.forward  # uncovers the class's own


def _digest(plan: TrainingPlan, records: Sequence[Record]) -> str:
    """SHA-256 of what every row of every step holds, in order, images included."""
    digest = hashlib.sha256()
    for step in plan.steps:
        content: list[Any] = [
            [
                [s.key, s.tokens, s.labels, s.image and records[s.key.record].image_sha256]
                for tree in trees
                for s in tree.sequences
            ]
            for trees in step.rows
        ]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()
