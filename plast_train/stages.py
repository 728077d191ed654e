"""The stages in order, and what each depends on: this decides what is up to date and what must be redone.

Imports no torch, so that the launcher can tell a finished run without starting ranks.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from plast_train.config import Config
from plast_train.run_folder import RunFolder, sha256_of
from plast_train.tasks.registry import benchmark_hashes

STAGES = ("collect", "select", "train", "export", "evaluate", "analyse", "report")

# Dotted config keys whose change changes a stage's result. How a result is computed (ZeRO stage, recompute,
# checkpoint intervals, batch size of generation) is not among them.
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
    # Partitioned weights leave some analyses out, so the DeepSpeed configuration is among these.
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

# Options that change a stage's inputs: their files are compared by content, whatever their names.
_INPUT_OPTIONS: dict[str, tuple[str, ...]] = {
    "base": ("model.path",),
    "records": ("data.questions", "data.image_root", "data.columns", "data.max_bad_fraction"),
    "benchmarks": ("evaluate.benchmarks", "evaluate.image_root"),
}
_INPUTS: dict[str, tuple[str, ...]] = {
    "collect": ("base", "records"),
    "select": (),
    "train": ("base", "records"),
    "export": (),
    "evaluate": ("benchmarks",),
    "analyse": ("base", "records", "benchmarks"),
    "report": (),
}

# Options that no finished stage depends on, and why.
CHANGES_NO_RESULT: dict[str, str] = {
    "model.trust_remote_code": "whether the model is loaded at all",
    "train.recompute": "the same numbers, computed twice to save memory",
    "train.validate_every": "how often the loss on held-back records is measured",
    "checkpoint.every_steps": "when the state is saved",
    "checkpoint.every_minutes": "when the state is saved",
    "checkpoint.keep": "how much of what was saved is kept",
    "evaluate.batch_size": "replies do not depend on it: near ties are asked again alone",
    "ablate.seeds": "which runs an ablation has; each has its own folder",
    "ablate.variants": "which runs an ablation has; each has its own folder",
    "ablate.every": "becomes part of the config of every run of an ablation",
    "ablate.only": "becomes part of the config of a variant's runs",
    "watchdog_minutes": "when a run that hangs is ended",
}

# The stages whose records are inputs of a stage.
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


def stages_redone_by(option: str) -> list[str]:
    """The stages whose own settings or inputs the option, a dotted key, is among."""
    return [
        stage
        for stage in STAGES
        if any(option == key or option.startswith(f"{key}.") for key in _SETTINGS[stage])
        or any(option in _INPUT_OPTIONS[name] for name in _INPUTS[stage])
    ]


def inputs_of(stage: str, config: Config, run: RunFolder, base: dict[str, Any]) -> dict[str, str] | None:
    """Hashes of what the stage reads, images included: records.jsonl holds the hash of each record's image, a
    benchmark's hash covers its images. None while a stage it needs has not finished."""
    named = _INPUTS[stage]
    inputs: dict[str, str] = {}
    if "base" in named:
        inputs = {"base": base["fingerprint"], "records": sha256_of(run.records)}
    if "benchmarks" in named:
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


def _lookup(tree: dict[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value
