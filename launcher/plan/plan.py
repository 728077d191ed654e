"""The plan of a run as plain values: its options, and every number of its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plast_train.config import Config, SelectionConfig
from plast_train.errors import UserError, nearest
from plast_train.neurons.strategies import fixed_layers, usual_number

PREFIX = "plan."
RANKS = (1, 2, 4, 8, 16, 32, 64)


class PlanOptions(BaseModel):
    """What a plan assumes and the config does not say: `plan.key=value` on the command line."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    gpus: int = Field(8, ge=1, description="GPUs, one rank each, that the recommendation is for")
    gpu_memory: float = Field(80, gt=0, description="memory of a GPU in GB")
    peak_tflops: float = Field(
        989,
        gt=0,
        description="dense peak of a GPU in TFLOP/s; default: H100 SXM or H200 in bf16",
    )
    mfu: float = Field(0.40, gt=0, le=1, description="fraction of the peak that the useful FLOPs reach")
    records: int = Field(10_000, ge=2, description="number of records where the data files do not exist yet")


def read_options(overrides: Sequence[str]) -> PlanOptions:
    """The options among the overrides.

    Raises:
        UserError: unknown option or wrong value.
    """
    values: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.removeprefix(PREFIX).partition("=")
        if not equals:
            raise UserError(f"'{override}' has no value; write plan.key=value")
        if key not in PlanOptions.model_fields:
            raise UserError(f"unknown option 'plan.{key}'{nearest(key, PlanOptions.model_fields)}")
        values[key] = text
    try:
        return PlanOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"plan.{first['loc'][0]}={first['input']}: {first['msg']}") from None


def make_plan(recipe: str, config: Config, options: PlanOptions) -> dict[str, Any]:
    """The plan as plain JSON values; sizes in bytes, times in seconds."""
    # These import torch, which takes seconds: a wrong option is refused before.
    from launcher.plan.resources import compare_settings, recommend, times
    from launcher.plan.work import collecting_work, read_data, training_work
    from plast_train.lvlm.architectures import count_parameters, local_folder, read_architecture
    from plast_train.training.flops import TRAINED_PARTS, shape_of
    from plast_train.training.memory import TrainedModel

    folder = local_folder(config.model.path)
    architecture = read_architecture(folder, config.model.path)
    shape = shape_of(architecture)
    layers, layers_note = layers_to_train(config.selection, shape.decoder.num_layers)
    total, trained = count_parameters(architecture, layers, config.selection.modules, config.train)
    lora = config.train.method == "lora"
    model = TrainedModel(
        decoder=shape.decoder,
        total_parameters=total,
        trained_parameters=trained,
        bytes_per_weight=2 if config.model.dtype == "bfloat16" else 4,
        selected_layers=tuple(layers),
        parts=TRAINED_PARTS[config.selection.modules] - ({"norms"} if lora else set()),
        adapter_rank=config.train.lora_rank or 0,
    )
    data = read_data(config, architecture, folder, options.records)
    training, collecting = training_work(config, data, shape, layers), collecting_work(config, data, shape)
    ranks = sorted({*RANKS, options.gpus})
    settings = compare_settings(config, model, training, ranks)
    return {
        "recipe": recipe,
        "model": {
            "path": config.model.path,
            "architecture_from": str(folder / "config.json") if folder else "built in",
            "dtype": config.model.dtype,
            "decoder_layers": shape.decoder.num_layers,
            "image_tokens": shape.image_tokens,
        },
        "parameters": {"total": total, "trained": trained, "share": trained / total},
        "selection": {
            "strategy": config.selection.strategy,
            "layers": layers,
            "modules": config.selection.modules,
            "method": config.train.method,
            "assumed": layers_note is not None,
        },
        "data": {
            "records": len(data.records),
            "assumed": data.audit is None,
            "audit": data.audit,
            "audit_lines": data.audit_lines,
        },
        "training": training.as_dict(),
        "collecting": collecting.as_dict(),
        "tokens_per_row": config.train.tokens_per_row,
        "settings": settings,
        "time": times(training, collecting, ranks, options.peak_tflops * 1e12 * options.mfu),
        "options": options.model_dump(),
        "recommendation": recommend(settings, training, options.gpus, options.gpu_memory),
        "assumptions": [*([layers_note] if layers_note else []), *data.assumptions],
    }


def layers_to_train(selection: SelectionConfig, num_layers: int) -> tuple[list[int], str | None]:
    """The layers, and how they were assumed where only the run's statistics will tell.

    Raises:
        UserError: a layer, or a number of layers, that the decoder does not have.
    """
    layers = fixed_layers(selection, num_layers)
    if layers is not None:
        return layers, None
    k = selection.k or usual_number(num_layers)
    layers = list(range(k))
    which = f"the first {k} of {num_layers} layers are trained"
    if selection.strategy == "msd":
        return (
            layers,
            f"{which}, the paper's number (5 of 32, 6 of 40); the run's statistics will select them",
        )
    return layers, f"{which}; strategy {selection.strategy} may choose deeper ones, which cost less"
