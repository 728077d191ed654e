"""Finding, checking and loading the base model. The only place that reads its weights as a whole."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from plast_train.config import ModelConfig
from plast_train.errors import UserError
from plast_train.lvlm.architectures import is_original, local_folder
from plast_train.lvlm.attention import implementation_for
from plast_train.lvlm.families import Family, family_of
from plast_train.lvlm.prompts import Prompter
from plast_train.run_folder import cache_folder, read_object, sha256_of


@dataclass
class Lvlm:
    """A loaded model with what is needed to feed it. `fingerprint` names the base by its content."""

    model: nn.Module
    tokenizer: Any
    image_processor: Any
    family: Family
    path: Path
    fingerprint: str

    def prompter(self, languages: list[str]) -> Prompter:
        return make_prompter(self.tokenizer, self.family, self.config, languages)

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.model.config.to_dict()  # type: ignore[operator, union-attr]
        return config

    def pixel_values(self, images: list[Any]) -> torch.Tensor:
        """`[images, 3, height, width]` in the model's dtype, on the CPU."""
        pixels: torch.Tensor = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        return pixels


def resolve_base(config: ModelConfig) -> Path:
    """The base model's folder in Hugging Face form.

    `tiny` is the embedded model; a name that is no folder is looked up on the hub (or in its cache); an
    original-LLaVA checkpoint is converted once into the cache folder.

    Raises:
        UserError: no such folder or hub model, or the folder cannot be a base (see `check_base`).
    """
    folder = _find(config.path)
    if is_original(read_object(folder / "config.json")):
        folder = _converted(folder)
    check_base(folder)
    return folder


def check_base(folder: Path) -> Family:
    """The family of the model in a Hugging Face folder, once all that loading needs is there.

    Raises:
        UserError: no config, weights or tokenizer, weights that are incomplete, or a family that is not
            supported.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; model.path must be a Hugging Face model folder")
    family = family_of(read_object(folder / "config.json"), str(folder / "config.json"))
    if not weight_files(folder):
        raise UserError(f"{folder}: no *.safetensors weights; download the model's weights into it")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index}: has no 'weight_map' from tensors to files; download the file again")
        missing = sorted(name for name in set(weight_map.values()) if not (folder / name).is_file())
        if missing:
            raise UserError(f"{index}: names files that are missing: {', '.join(missing)}; download them too")
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt"):  # reads the header and compares the length with it
                pass
        except SafetensorError as error:
            raise UserError(f"{file}: not a complete safetensors file ({error}); download it again") from None
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{folder}: no tokenizer.json or tokenizer.model; download the model's tokenizer too")
    return family


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def describe_base(folder: Path) -> dict[str, Any]:
    """What identifies a base: its path, the SHA-256 of weights, config, tokenizer and processor files, and
    one over them all."""
    text_side = [f for f in folder.iterdir() if f.suffix in (".json", ".model", ".jinja")]
    files = [*sorted(text_side), *weight_files(folder)]
    with ThreadPoolExecutor() as pool:
        hashes = dict(zip([f.name for f in files], pool.map(sha256_of, files), strict=True))
    total = hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()
    return {"path": str(folder.resolve()), "fingerprint": total, "files": hashes}


def load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The folder's tokenizer alone, which a plan needs; transformers' own errors pass through."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def load_text_side(folder: Path, trust_remote_code: bool) -> tuple[Any, Any]:
    """The tokenizer and the image processor.

    Raises:
        UserError: the folder lacks one of them, or it cannot be read.
    """
    from transformers import AutoImageProcessor

    try:
        tokenizer = load_tokenizer(folder, trust_remote_code)
        # Pillow's, so that the pixels are the same with and without torchvision.
        images = AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=trust_remote_code, backend="pil"
        )
    except Exception as error:  # transformers raises anything for a missing or truncated file
        raise UserError(
            f"{folder}: its tokenizer or image processor cannot be loaded ({error}); "
            "download the model's tokenizer and processor files too"
        ) from None
    return tokenizer, images


def make_prompter(tokenizer: Any, family: Family, config: dict[str, Any], languages: list[str]) -> Prompter:
    """`config` is the model's complete config (see `architectures.read_architecture`)."""
    image_token, num_image_tokens = config[family.image_token_key], family.num_image_tokens(config)
    return Prompter(tokenizer, family.chat, image_token, num_image_tokens, tuple(languages))


def load_lvlm(
    base: dict[str, Any], config: ModelConfig, device: torch.device, zero3: dict[str, Any] | None
) -> Lvlm:
    """Loads the base that `describe_base` described, frozen and in evaluation mode.

    With `zero3` (a complete DeepSpeed configuration of stage 3) the weights are partitioned over the ranks
    as they are read; otherwise each rank holds the whole model.

    Raises:
        UserError: the folder lacks weights; they would be random.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.integrations import HfDeepSpeedConfig

    if device.type == "cuda":
        # Rows differ in length; beyond the default of 8 compiled variants flex attention would run unfused.
        torch._dynamo.config.recompile_limit = 64
    folder = Path(base["path"])
    # from_pretrained partitions the weights as long as this object lives.
    partitioning = HfDeepSpeedConfig(zero3) if zero3 is not None else None
    from_pretrained: Any = AutoModelForImageTextToText.from_pretrained
    model, loaded = from_pretrained(
        folder,
        output_loading_info=True,
        dtype=getattr(torch, config.dtype),
        attn_implementation={"text_config": implementation_for(device), "vision_config": "sdpa"},
        trust_remote_code=config.trust_remote_code,
        # Straight to the device: eight ranks with a whole 13B each would fill the host's memory.
        device_map={"": device} if zero3 is None else None,
    )
    del partitioning
    wrong = sorted([*loaded["missing_keys"], *loaded["mismatched_keys"]])
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} weights are missing or of the wrong shape, e.g. {wrong[0]}; "
            "download the model again"
        )
    model.requires_grad_(False)
    model.eval()
    tokenizer, images = load_text_side(folder, config.trust_remote_code)
    family = family_of(read_object(folder / "config.json"), str(folder))
    return Lvlm(model, tokenizer, images, family, folder, base["fingerprint"])


def _find(path: str) -> Path:
    folder = local_folder(path)
    if folder is not None:
        return folder
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise UserError(f"model.path '{path}': no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path))
    except Exception as error:  # network, permission or a name the hub does not have: one answer to all
        raise UserError(
            f"model.path '{path}': there is no such folder, and it cannot be downloaded from the hub "
            f"({type(error).__name__}); download the model yourself and give its folder"
        ) from None


def _converted(source: Path) -> Path:
    """The Hugging Face form of an original-LLaVA checkpoint, made once for each state of its files."""
    from plast_train.lvlm.original_llava import convert_original

    # Size and time instead of content: hashing 26 GB would take minutes at each start.
    stat = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(source.iterdir()) if f.is_file()]
    name = hashlib.sha256(repr((str(source.resolve()), stat)).encode()).hexdigest()[:16]
    target = cache_folder() / f"converted-{name}"
    if not target.exists():
        convert_original(source, target, None)
    return target
