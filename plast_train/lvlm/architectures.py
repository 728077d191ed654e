"""What a model is, without its weights: its config.json, and its parameters counted on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from plast_train.config import TrainConfig
from plast_train.errors import UserError, nearest
from plast_train.run_folder import read_object

# What these models' config.json on the Hugging Face hub sets; the rest are transformers' defaults.
_LLAVA_15 = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}
_VICUNA = {
    "model_type": "llama",
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}


def _llava_15(width: int, ffn_width: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    text = _VICUNA | {
        "hidden_size": width,
        "intermediate_size": ffn_width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
    }
    return _LLAVA_15 | {"text_config": text}


# Models that can be planned for without their folder.
KNOWN: dict[str, dict[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": _llava_15(4096, 11008, 32, 32),
    "llava-hf/llava-1.5-13b-hf": _llava_15(5120, 13824, 40, 40),
}
_WHOLE_LAYERS = TrainConfig()  # the default method: the layers' own weights, no adapters


def local_folder(path: str) -> Path | None:
    """The folder that `model.path` names, None if it is none of this machine's; `tiny` is the model that the
    package ships."""
    if path == "tiny":
        return Path(str(resources.files("plast_train") / "tiny" / "model"))
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an original-LLaVA checkpoint."""
    return "mm_vision_tower" in config


def has_tokenizer(folder: Path | None) -> bool:
    """Whether a tokenizer can be loaded from the folder as it is (an original one must be converted)."""
    if folder is None or is_original(read_object(folder / "config.json")):
        return False
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def read_architecture(folder: Path | None, name: str) -> dict[str, Any]:
    """The complete config of the model in `folder`, or without a folder of the known model `name`: the keys
    of `model.config.to_dict()`.

    Raises:
        UserError: no folder and no known name, no config.json, or a family that is not supported.
    """
    from transformers import AutoConfig

    from plast_train.lvlm.families import family_of

    if folder is not None:
        where, raw = str(folder / "config.json"), read_object(folder / "config.json")
        if is_original(raw):
            from plast_train.lvlm.original_llava import original_config

            return original_config(folder)
    elif name in KNOWN:
        where, raw = name, KNOWN[name]
    else:
        raise UserError(
            f"model.path '{name}': no such folder{nearest(name, KNOWN)} (known without a folder: "
            f"{', '.join(KNOWN)}; a folder that holds the model's config.json is enough)"
        )
    family_of(raw, where)
    try:
        complete: dict[str, Any] = AutoConfig.for_model(**raw).to_dict()
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: cannot be read as a model configuration ({error})") from None
    return complete


def count_parameters(
    config: dict[str, Any],
    layers: Sequence[int],
    modules: str,
    train: TrainConfig = _WHOLE_LAYERS,
    images: bool = True,
) -> tuple[int, int]:
    """Parameters of the whole model, LoRA adapters among them, and those trained with `layers`, `modules`
    (`selection.modules`) and `train.method`. `images`: whether every training sample has one.

    Raises:
        UserError: a layer that the decoder does not have.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from plast_train.lvlm.families import family_of
    from plast_train.lvlm.freezing import changed_weights, linear_layers

    with torch.device("meta"):  # shapes alone, no memory
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
    family, total = family_of(config, "config"), sum(p.numel() for p in model.parameters())
    if train.method == "lora":
        assert train.lora_rank is not None
        targets = linear_layers(model, family, layers, modules).values()
        # A is [r, inputs], B is [outputs, r] (Hu et al. 2021).
        adapters = sum(train.lora_rank * (m.in_features + m.out_features) for m in targets)
        return total + adapters, adapters
    trained = changed_weights(model, family, layers, modules, train, images)
    return total, sum(p.numel() for p in trained.values())
