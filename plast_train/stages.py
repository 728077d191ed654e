"""What each stage depends on: this decides which stages are done and which must be redone.

Imports no torch, so that the launcher can tell a finished run without starting ranks.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from plast_train.config import Config
from plast_train.run_folder import STAGES, RunFolder, sha256_of
from plast_train.tasks.registry import benchmark_hashes

# Dotted config keys (or whole sections) that a stage's result depends on. How it is computed (ZeRO stage,
# recompute, checkpoint intervals, batch size of generation) is not among them.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "collect": ("seed", "model.dtype", "data.languages", "probe.records", "probe.tokens_per_row"),
    "select": ("seed", "probe.position", "selection", "train.method", "train.lora_rank"),
    "train": (
        "seed",
        "train.method",
        "train.lora_rank",
        "train.lora_alpha",
        "model.dtype",
        "data.languages",
        "train.epochs",
        "train.max_steps",
        "train.global_batch",
        "train.learning_rate",
        "train.warmup_fraction",
        "train.weight_decay",
        "train.betas",
        "train.gradient_clipping",
        "train.tokens_per_row",
        "train.image_in_training",
        "train.instruction",
        "train.validation_records",
        "sampling",
    ),
    "export": (),
    "evaluate": (
        "model.dtype",
        "evaluate.matching",
        "evaluate.max_new_tokens",
        "evaluate.localised_instruction",
    ),
    # With partitioned weights some analyses are left out, so the DeepSpeed configuration is among these.
    "analyse": (
        "seed",
        "model.dtype",
        "data.languages",
        "probe.records",
        "probe.position",
        "selection",
        "train.validation_records",
        "train.deepspeed",
        "evaluate.max_new_tokens",
        "evaluate.localised_instruction",
        "analyse",
    ),
    "report": (),
}

# Why the other options are in no stage's settings. What a stage reads counts by its content, see `inputs_of`.
_RECORDS = "records.jsonl, whose hash is an input of collect, train and analyse"
_ABLATION = "each run of plast ablate has a config of its own"
NOT_IN_A_STAGE = {
    "model.path": "by its content: the base's hash is an input of collect, train and analyse",
    "model.trust_remote_code": "decides whether the model loads, not what it computes",
    "data.questions": f"by its content: it makes {_RECORDS}",
    "data.image_root": f"by its content: the images' hashes are in {_RECORDS}",
    "data.columns": f"by its effect on {_RECORDS}",
    "data.max_bad_fraction": f"by its effect on {_RECORDS}",
    "train.recompute": "the same numbers with less memory",
    "train.validate_every": "a measurement that does not influence the training",
    "checkpoint.every_steps": "training resumes from any step with the same result",
    "checkpoint.every_minutes": "training resumes from any step with the same result",
    "checkpoint.keep": "stability measures the checkpoints that exist",
    "evaluate.benchmarks": "by its content: the benchmarks' hashes are inputs of evaluate and analyse",
    "evaluate.image_root": "by its content: the benchmarks' hashes include their images",
    "evaluate.batch_size": "the same replies, more or fewer of them at once",
    "ablate.seeds": _ABLATION,
    "ablate.variants": _ABLATION,
    "ablate.every": _ABLATION,
    "ablate.only": _ABLATION,
    "watchdog_minutes": "when a run that hangs is ended, not what it computes",
}

# Stages whose records are an input of a stage.
_NEEDS: dict[str, tuple[str, ...]] = {
    "collect": (),
    "select": ("collect",),
    "train": ("select",),
    "export": ("train",),
    "evaluate": ("export",),
    "analyse": ("collect", "select", "export"),
    "report": ("select", "train", "evaluate", "analyse"),
}


def settings_of(stage: str, config: Config) -> dict[str, Any]:
    """The settings the stage's result depends on, by dotted key."""
    tree = config.model_dump(mode="json")
    return {key: _lookup(tree, key) for key in _SETTINGS[stage]}


def inputs_of(stage: str, config: Config, run: RunFolder, base: dict[str, Any]) -> dict[str, str] | None:
    """Hashes of what the stage reads, images included: records.jsonl holds the hash of each record's image, a
    benchmark's hash covers its images. None while a stage it needs has not finished."""
    inputs: dict[str, str] = {}
    if stage in ("collect", "train", "analyse"):
        inputs = {"base": base["fingerprint"], "records": sha256_of(run.records)}
    if stage in ("evaluate", "analyse"):
        inputs |= benchmark_hashes(config.evaluate)
    for needed in _NEEDS[stage]:
        found = record_hash(run, needed)
        if found is None:
            return None
        inputs[needed] = found
    return inputs


def record_hash(run: RunFolder, stage: str) -> str | None:
    """SHA-256 of a stage's record, as an input of the stages that need it; None before it is finished."""
    record = run.record(stage)
    if record is None:
        return None
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def is_benchmark(name: str) -> bool:
    """Whether an input of that name is one of the benchmarks."""
    return name not in ("base", "records", *STAGES)


def is_done(stage: str, config: Config, run: RunFolder, base: dict[str, Any]) -> bool:
    """Whether the stage's record exists and matches the config and the inputs as they are now."""
    inputs = inputs_of(stage, config, run, base)
    return inputs is not None and run.is_done(stage, settings_of(stage, config), inputs)


def is_current(stage: str, run: RunFolder) -> bool:
    """Whether the stage and those before it are finished and each was made from the one before, so that their
    files belong together. Not so while a run is being redone with other settings."""
    record = run.record(stage)
    return record is not None and all(
        record["inputs"][needed] == record_hash(run, needed) and is_current(needed, run)
        for needed in _NEEDS[stage]
    )


def needed_by(stage: str) -> tuple[str, ...]:
    return _NEEDS[stage]


def redone_by(option: str) -> list[str]:
    """The stages whose settings include the option, alone or with its whole section."""
    return [
        stage
        for stage, settings in _SETTINGS.items()
        if any(option == setting or option.startswith(f"{setting}.") for setting in settings)
    ]


def _lookup(tree: dict[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value
