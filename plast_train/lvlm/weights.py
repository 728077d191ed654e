"""A model folder's weights on disk: where each tensor lies, and loading single decoder layers.

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

from plast_train.errors import UserError
from plast_train.lvlm.families import family_of
from plast_train.lvlm.freezing import trainable_parameters
from plast_train.lvlm.loading import Lvlm, weight_files
from plast_train.run_folder import read_json, read_object
from plast_train.runtime.distributed import Ranks


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file: its bytes are `start` to `stop`, from the beginning of the file."""

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
    load_weights(lvlm, folder, trainable_parameters(lvlm.model, lvlm.family, layers, "all"), ranks)


def load_weights(lvlm: Lvlm, folder: Path, names: Collection[str], ranks: Ranks) -> None:
    """The same for the parameters `names` (as in `model.named_parameters()`)."""
    parameters = dict(lvlm.model.named_parameters())
    for name, stored in disk_tensors(folder, names).items():
        parameter = parameters[name]
        partitioned = hasattr(parameter, "ds_id")
        with torch.no_grad(), _whole(parameter, partitioned):
            if not partitioned or ranks.is_first:
                parameter.copy_(read_tensor(stored))


def read_tensor(stored: StoredTensor) -> torch.Tensor:
    with safe_open(stored.file, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(stored.key)
    return tensor


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
            if not partitioned:  # GatheredParameters has shared a partitioned one
                ranks.share(parameter.data)


def _whole(parameter: torch.nn.Parameter, partitioned: bool) -> Any:
    """A block in which the parameter is whole; what rank 0 writes into it reaches every rank's part."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=partitioned)


def disk_tensors(folder: Path, names: Collection[str]) -> dict[str, StoredTensor]:
    """Where parameters (by their name in `model.named_parameters()`) are stored. Those of the vision tower
    are refused: nothing trains them.

    Names on disk differ from the model's in what precedes `layers.` (`language_model.model.layers.0…` for
    `model.language_model.layers.0…`, depending on the version that wrote the folder). Instead of following
    each version's renaming this looks for the one prefix under which the folder has all the decoder's names
    outside the vision tower, and likewise for each tensor of the projector or the head.

    Raises:
        UserError: none or several such prefixes.
    """
    config = folder / "config.json"
    family = family_of(read_object(config), str(config))
    decoder, vision = family.decoder_path + ".", family.vision_path.rpartition(".")[2]
    towers = [name for name in names if name.startswith(family.vision_path + ".")]
    if towers:
        raise ValueError(f"{towers[0]} belongs to the vision tower, which is never trained")
    stored = {
        tensor.key: tensor
        for file in model_files(folder)
        for tensor in tensors_of(file)
        if vision not in tensor.key.split(".")
    }
    inner = [name.removeprefix(decoder) for name in names if name.startswith(decoder)]
    prefix = _prefix_of(folder, stored, inner) if inner else ""
    found = {}
    for name in names:
        if name.startswith(decoder):
            found[name] = stored[prefix + name.removeprefix(decoder)]
        else:
            tail = name.removeprefix("model.")
            found[name] = stored[_prefix_of(folder, stored, [tail]) + tail]
    return found


def _prefix_of(folder: Path, stored: Mapping[str, StoredTensor], tails: Sequence[str]) -> str:
    """The one prefix with which the folder has all of `tails` as keys."""
    first = tails[0]
    prefixes = [
        prefix
        for prefix in (key.removesuffix(first) for key in stored if ("." + key).endswith("." + first))
        if all(prefix + tail in stored for tail in tails)
    ]
    if len(prefixes) != 1:
        raise UserError(f"{folder}: {len(prefixes)} places in the weights hold '{first}'; there must be one")
    return prefixes[0]


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
