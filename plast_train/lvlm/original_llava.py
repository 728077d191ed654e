"""Original LLaVA-1.5 checkpoints (github.com/haotian-liu/LLaVA) as Hugging Face folders, and the keys back.

The original keeps the CLIP tower and the projector inside the Llama model (`model.vision_tower…`,
`model.mm_projector…`), has no token for an image and no padding token. As in llava-hf's own folders,
`<image>` and `<pad>` follow the vocabulary, which is padded to a multiple of 64. The new rows are the mean of
the old ones (llava-hf draws them closely around it), so that a conversion gives the same bytes each time.
"""

from __future__ import annotations

import fcntl
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from plast_train.errors import UserError
from plast_train.run_folder import publish_folder, read_object, sync_file, to_json

# LLaVA-1.5's turns (Vicuna v1), as llava-hf's processors have them.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

Tensors = dict[str, torch.Tensor]

# Original prefix and llava-hf's; the first match counts.
_PREFIXES = (
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
_VOCABULARY_KEYS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
# Buffers that older versions saved and newer ones compute.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")
_LLAMA_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "bos_token_id",
    "eos_token_id",
)
_FIX_SPACE = "free some space, or name another cache folder in PLAST_CACHE"
_IMAGE, _PAD = "<image>", "<pad>"
_CLIP_L_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


def convert_original(source: Path, target: Path, vision_tower: Path | None) -> None:
    """Publishes `target`, the Hugging Face folder of the original checkpoint `source`, file by file, in the
    checkpoint's dtype. Does nothing where `target` exists.

    `vision_tower` is the folder of the CLIP model; by default the one that the checkpoint's
    `mm_vision_tower` names. It is needed where the checkpoint has no vision weights or names another tower
    than OpenAI's ViT-L/14 of 336 pixels.

    Raises:
        UserError: files are missing or unreadable, the checkpoint is of another kind than LLaVA-1.5, or
            `target` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Launchers on several machines may share the folder; the first one converts.
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _convert(source, target, vision_tower)
    except (OSError, SafetensorError) as error:  # a full disk can show as either
        raise UserError(f"{target.parent}: cannot convert {source} into it ({error}); {_FIX_SPACE}") from None


def original_config(source: Path) -> dict[str, Any]:
    """The complete Hugging Face config of an original checkpoint, of which only config.json need be there.

    Raises:
        UserError: another kind than LLaVA-1.5, or a vision tower that is not known without its folder.
    """
    original = read_object(source / "config.json")
    _check_kind(source, original)
    config = _hf_config(source, original, _find_tower(source, original["mm_vision_tower"]))
    complete: dict[str, Any] = config.to_dict()
    return complete


def _convert(source: Path, target: Path, vision_tower: Path | None) -> None:
    original = read_object(source / "config.json")
    _check_kind(source, original)
    tower = vision_tower or _find_tower(source, original["mm_vision_tower"])
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a conversion that was killed
    needed = sum(file.stat().st_size for file in _weight_files(source))
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise UserError(
            f"{target.parent}: {free / 1e9:.3g} GB are free on its disk, but {source} takes about "
            f"{needed / 1e9:.3g} GB in Hugging Face form; {_FIX_SPACE}"
        )
    temporary.mkdir()
    config = _hf_config(source, original, tower)
    _write_text_side(source, original, config, temporary)
    _write_weights(source, tower, config, temporary)
    for file in temporary.iterdir():
        sync_file(file)
    publish_folder(temporary, target)


def to_hf(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Original keys to llava-hf's; the tensors are unchanged, computed buffers are left out."""
    return {
        _replace_prefix(key, _PREFIXES): tensor
        for key, tensor in tensors.items()
        if not _COMPUTED.search(key)
    }


def to_original(tensors: Mapping[str, torch.Tensor], vocabulary: int) -> Tensors:
    """The keys of a llava-hf folder, as llava-hf or transformers 5 writes them, to the original ones.

    The embedding and the output layer are cut to the original `vocabulary` (32,000 for LLaVA-1.5).
    """
    back = tuple((ours, theirs) for theirs, ours in _PREFIXES)
    named = {_with_vision_model(key): tensor for key, tensor in tensors.items()}
    return {
        _replace_prefix(key, back): tensor[:vocabulary] if key in _VOCABULARY_KEYS else tensor
        for key, tensor in named.items()
    }


def _replace_prefix(key: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    for old, new in prefixes:
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise UserError(f"'{key}' is not a weight of a LLaVA-1.5 model")


def _with_vision_model(key: str) -> str:
    """transformers 5 leaves `vision_model.` out of the tower's keys."""
    tower, inner = "vision_tower.", "vision_tower.vision_model."
    return inner + key.removeprefix(tower) if key.startswith(tower) and not key.startswith(inner) else key


def _check_kind(source: Path, original: Mapping[str, Any]) -> None:
    wanted: dict[str, list[Any]] = {
        "architectures": [["LlavaLlamaForCausalLM"]],
        "mm_projector_type": ["mlp2x_gelu"],
        "mm_use_im_start_end": [False, None],
        "mm_patch_merge_type": ["flat", None],
        "mm_vision_select_feature": ["patch", "cls_patch", None],
    }
    for key, values in wanted.items():
        if original.get(key) not in values:
            raise UserError(
                f"{source / 'config.json'}: {key} is {original.get(key)!r}; of original checkpoints only "
                f"LLaVA-1.5 is supported, where it is {values[0]!r}"
            )


def _find_tower(source: Path, name: str) -> Path | None:
    """The CLIP folder that a checkpoint names: by itself, or beside the checkpoint."""
    places = (source / name, source.parent / Path(name).name)
    return next((place for place in places if (place / "config.json").is_file()), None)


def _hf_config(source: Path, original: Mapping[str, Any], tower: Path | None) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    name = str(original["mm_vision_tower"])
    if tower is not None:
        described = read_object(tower / "config.json")
        vision: Any = CLIPVisionConfig(**described.get("vision_config", described))
    elif Path(name).name == "clip-vit-large-patch14-336":
        vision = CLIPVisionConfig(**_CLIP_L_336)
    else:
        raise UserError(
            f"{source}: its vision tower '{name}' is missing; put its folder beside the checkpoint"
        )
    known = {key: original[key] for key in _LLAMA_SETTINGS if original.get(key) is not None}
    text = LlamaConfig(**known, tie_word_embeddings=False)
    image = text.vocab_size
    text.pad_token_id = image + 1
    text.vocab_size = -(-(image + 2) // 64) * 64  # the next multiple of 64, as in llava-hf's folders
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=original.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=(
            "full" if original.get("mm_vision_select_feature") == "cls_patch" else "default"
        ),
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        architectures=["LlavaForConditionalGeneration"],
    )


def _write_text_side(source: Path, original: Mapping[str, Any], config: Any, folder: Path) -> None:
    """Tokenizer, image processor, chat template and generation settings."""
    from transformers import (
        CLIPImageProcessor,
        GenerationConfig,
        LlamaTokenizer,
        LlavaImageProcessor,
        LlavaProcessor,
    )

    if not (source / "tokenizer.model").is_file():
        raise UserError(f"{source}: no tokenizer.model; download the checkpoint's tokenizer too")
    # The original tokenises the texts before and after an image each by itself, with SentencePiece's leading
    # space; `legacy` puts that space after a special token too.
    tokenizer = LlamaTokenizer.from_pretrained(source, add_bos_token=True, legacy=True, padding_side="left")
    tokenizer.add_special_tokens({"extra_special_tokens": [_IMAGE], "pad_token": _PAD})
    ids = tokenizer.convert_tokens_to_ids([_IMAGE, _PAD])
    if ids != [config.image_token_index, config.text_config.pad_token_id]:
        raise UserError(
            f"{source}: tokenizer.model does not have the {config.image_token_index} tokens of config.json"
        )
    size = config.vision_config.image_size
    # The original pads images to squares where its config asks for it; CLIP's own processor crops them.
    pads = original.get("image_aspect_ratio") == "pad"
    sizes: Any = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    LlavaProcessor(
        image_processor=LlavaImageProcessor(do_pad=True, **sizes) if pads else CLIPImageProcessor(**sizes),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        num_additional_image_tokens=1,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
    text = config.text_config
    GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    ).save_pretrained(folder)


def _write_weights(source: Path, tower: Path | None, config: Any, folder: Path) -> None:
    """One file for each of the checkpoint's and, where it has no vision weights, one for the tower's; the
    index; and config.json, which holds their dtype."""
    shapes: list[dict[str, list[int]]] = []  # of each file's tensors, by key

    def part(number: int) -> Path:
        return folder / f"part-{number:05d}.safetensors"

    def save(tensors: Tensors) -> None:
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, part(len(shapes)), {"format": "pt"})
        shapes.append({key: list(tensor.shape) for key, tensor in contiguous.items()})

    for file in _weight_files(source):
        tensors = to_hf(_read(file))
        for key in set(_VOCABULARY_KEYS) & set(tensors):
            table = tensors[key]
            config.dtype = table.dtype
            mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
            num_new = config.text_config.vocab_size - len(table)
            tensors[key] = torch.cat([table, mean.expand(num_new, -1)])
        save(tensors)
    if not any(key.startswith("vision_tower.") for found in shapes for key in found):
        save({key: tensor.to(config.dtype) for key, tensor in _tower_weights(source, tower).items()})
    _check_complete(source, config, {key: shape for found in shapes for key, shape in found.items()})
    index: dict[str, str] = {}
    for number, found in enumerate(shapes):  # the names hold how many files there are
        name = f"model-{number + 1:05d}-of-{len(shapes):05d}.safetensors"
        part(number).rename(folder / name)
        index |= dict.fromkeys(found, name)
    size = sum((folder / name).stat().st_size for name in set(index.values()))
    tree = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
    (folder / "model.safetensors.index.json").write_text(to_json(tree), encoding="utf-8")
    config.save_pretrained(folder)


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder}: no *.safetensors or pytorch_model*.bin weights; download them into it")
    return files


def _read(file: Path) -> Tensors:
    """A weight file's tensors, mapped from the disk. A pickle may hold nothing but tensors."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors: Tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return tensors
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{file}: cannot be read as weights ({str(error).splitlines()[0]})") from None


def _tower_weights(source: Path, tower: Path | None) -> Tensors:
    """The vision half of a CLIP folder, by llava-hf's keys."""
    if tower is None:
        raise UserError(f"{source}: has no vision weights; put the folder of its mm_vision_tower beside it")
    tensors = {key: tensor for file in _weight_files(tower) for key, tensor in _read(file).items()}
    return {
        f"vision_tower.{key}": tensor
        for key, tensor in tensors.items()
        if key.startswith("vision_model.") and not _COMPUTED.search(key)
    }


def _check_complete(source: Path, config: Any, found: dict[str, list[int]]) -> None:
    """Refuses missing, unknown and misshapen weights: transformers would fill gaps with random numbers."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    wanted = {_disk_key(name): list(p.shape) for name, p in model.named_parameters()}
    wrong = sorted(key for key in wanted | found if wanted.get(key) != found.get(key))
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights do not fit config.json, e.g. {wrong[0]}: "
            f"its shape is {found.get(wrong[0], 'missing')}, the model's {wanted.get(wrong[0], 'missing')}"
        )


def _disk_key(parameter: str) -> str:
    """A parameter's name in transformers 5 → llava-hf's key."""
    key = parameter.removeprefix("model.")
    if key.startswith("language_model."):
        return "language_model.model." + key.removeprefix("language_model.")
    return "language_model." + key if key.startswith("lm_head.") else _with_vision_model(key)
