"""A model folder's weights on disk: where each tensor lies, and reading single decoder layers.

The format: 8 bytes of header length, a JSON header with dtype, shape and byte range of each tensor, the
data (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from plast_train.distributed import Ranks
from plast_train.errors import UserError
from plast_train.lvlm.families import family_of
from plast_train.lvlm.freezing import trainable_parameters
from plast_train.lvlm.loading import Lvlm, weight_files
from plast_train.run_folder import read_json


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file: its bytes are `start` to `stop`, counted from the file's begin."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def load_layers(lvlm: Lvlm, folder: Path, layers: Sequence[int], ranks: Ranks) -> None:
    """Gives the model's decoder layers `layers` the weights they have in `folder`, in the model's dtype.

    Works on whole and on partitioned (ZeRO-3) weights; called by every rank.
    """
    parameters = trainable_parameters(lvlm.model, lvlm.family, layers, "all")
    stored = disk_tensors(folder, parameters)
    for name, parameter in parameters.items():
        partitioned = hasattr(parameter, "ds_id")
        with torch.no_grad(), _whole(parameter, partitioned):
            if not partitioned or ranks.is_first:
                with safe_open(stored[name].file, "pt") as file:
                    parameter.copy_(file.get_tensor(stored[name].key))


def put_weights(
    parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, torch.Tensor], ranks: Ranks
) -> None:
    """Gives parameters rank 0's `weights` of the same names, in the parameters' dtype; other ranks may give
    none. Works on whole and on partitioned (ZeRO-3) weights; called by every rank."""
    for name, parameter in parameters.items():
        partitioned = hasattr(parameter, "ds_id")
        with torch.no_grad(), _whole(parameter, partitioned):
            if ranks.is_first:
                parameter.copy_(weights[name])
            if not partitioned:
                ranks.share(parameter.data)


def _whole(parameter: torch.nn.Parameter, partitioned: bool) -> Any:
    """Within it the parameter is whole; what rank 0 writes into it reaches every rank's part."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=partitioned)


def disk_tensors(folder: Path, names: Collection[str]) -> dict[str, StoredTensor]:
    """Where parameters of decoder layers (by their name in `model.named_parameters()`) are stored.

    Names on disk differ from the model's in what precedes `layers.` (`language_model.model.layers.0…` for
    `model.language_model.layers.0…`, depending on who wrote the folder). The one prefix under which the
    folder has all of them outside the vision tower is found, so nothing depends on a version's renaming.

    Raises:
        UserError: none or several such prefixes.
    """
    config = folder / "config.json"
    family = family_of(read_json(config), str(config))
    decoder, vision = family.decoder_path + ".", family.vision_path.rpartition(".")[2]
    outside = [name for name in names if not name.startswith(decoder + "layers.")]
    if outside:
        raise ValueError(f"{outside[0]}: not a parameter of a decoder layer")
    stored = {tensor.key: tensor for file in model_files(folder) for tensor in tensors_of(file)}
    inner = {name: name.removeprefix(decoder) for name in names}
    first = next(iter(inner.values()))
    prefixes = [
        prefix
        for prefix in (key.removesuffix(first) for key in stored if ("." + key).endswith("." + first))
        if vision not in prefix.split(".") and all(prefix + rest in stored for rest in inner.values())
    ]
    if len(prefixes) != 1:
        raise UserError(f"{folder}: {len(prefixes)} places in the weights hold '{first}'; one was expected")
    return {name: stored[prefixes[0] + rest] for name, rest in inner.items()}


def model_files(folder: Path) -> list[Path]:
    """The weight files that transformers reads: those of the index, where there is one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return weight_files(folder)
    return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]


def tensors_of(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, from its header alone."""
    raw = header_bytes(file)
    header: dict[str, Any] = json.loads(raw)
    header.pop("__metadata__", None)
    begin = 8 + len(raw)
    return [
        StoredTensor(
            file,
            key,
            entry["dtype"],
            tuple(entry["shape"]),
            *(begin + offset for offset in entry["data_offsets"]),
        )
        for key, entry in header.items()
    ]


def header_bytes(file: Path) -> bytes:
    with file.open("rb") as reader:
        return reader.read(int.from_bytes(reader.read(8), "little"))
