import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from plast_train.errors import UserError
from plast_train.lvlm import original_llava
from plast_train.lvlm.architectures import count_parameters
from plast_train.lvlm.original_llava import convert_original, original_config, to_hf, to_original
from plast_train.tiny.tokenizer import train_tokenizer

WIDTH, VISION, VOCABULARY = 16, 8, 300
TOWER = "clip-of-the-test"
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ORIGINAL = LLAMA | {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "rope_scaling": None,
    "pad_token_id": 0,
    "mm_vision_tower": f"somebody/{TOWER}",
    "mm_hidden_size": VISION,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "image_aspect_ratio": "pad",
}
VISION_CONFIG = CLIPVisionConfig(
    hidden_size=VISION,
    intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=28,
    patch_size=7,
)


class Original:
    """LLaVA-1.5 as its authors wrote it: CLIP's second last layer, without the class token, through the
    projector, in the place of the image, into Llama."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.vision = CLIPVisionModel(VISION_CONFIG).eval()
        self.projector = nn.Sequential(nn.Linear(VISION, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.llama = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
        for parameter in self.parameters().values():
            nn.init.normal_(parameter, std=0.3)

    def parameters(self) -> dict[str, torch.Tensor]:
        """By the keys of an original checkpoint."""
        vision = {
            "model.vision_tower.vision_tower.vision_model." + name.removeprefix("vision_model."): p
            for name, p in self.vision.named_parameters()
        }
        projector = {f"model.mm_projector.{name}": p for name, p in self.projector.named_parameters()}
        return {**dict(self.llama.named_parameters()), **projector, **vision}

    @torch.no_grad()
    def logits(self, before: list[int], pixels: torch.Tensor, after: list[int]) -> torch.Tensor:
        features = self.vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        words = [self.llama.model.embed_tokens(torch.tensor([ids])) for ids in (before, after)]
        embeds = torch.cat([words[0], self.projector(features), words[1]], dim=1)
        return self.llama(inputs_embeds=embeds).logits[0]


@pytest.fixture(scope="module")
def original() -> Original:
    return Original()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, original) -> Path:
    """An original checkpoint in two pickles, with buffers that older versions saved."""
    folder = tmp_path_factory.mktemp("models") / "llava-v1.5-tiny"
    folder.mkdir()
    train_tokenizer(["A chat. USER: What is this? ASSISTANT: It is a cat.\n"] * 20, folder, VOCABULARY)
    (folder / "config.json").write_text(json.dumps(ORIGINAL))
    tensors = {key: p.detach().clone() for key, p in original.parameters().items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    keys = list(tensors)
    for number, part in enumerate((keys[:20], keys[20:]), start=1):
        torch.save({key: tensors[key] for key in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    clip = CLIPModel.config_class(
        vision_config=VISION_CONFIG.to_dict(),
        text_config=CLIPTextConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        ).to_dict(),
    )
    tower = folder.parent / TOWER
    model = CLIPModel(clip)
    model.vision_model.load_state_dict(
        {k.removeprefix("vision_model."): v for k, v in original.vision.state_dict().items()}
    )
    model.save_pretrained(tower)
    return folder


def without_vision(checkpoint: Path, folder: Path) -> Path:
    """The same checkpoint as others publish it: safetensors, half precision, the tower elsewhere."""
    folder.mkdir(parents=True)
    tensors = {
        key: tensor.half()
        for file in checkpoint.glob("*.bin")
        for key, tensor in torch.load(file, weights_only=True).items()
        if "vision_tower" not in key
    }
    save_file(tensors, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.model"):
        shutil.copyfile(checkpoint / name, folder / name)
    return folder


def load(folder: Path):
    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_logits_equal_the_originals(tmp_path, checkpoint, original):
    convert_original(checkpoint, tmp_path / "hf", None)
    model, processor = load(tmp_path / "hf"), AutoProcessor.from_pretrained(tmp_path / "hf")
    inputs = processor(
        text="USER: <image>\nWhat is this? ASSISTANT:", images=picture(40, 30), return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    # The original tokenises each text around the image by itself and drops the second one's BOS.
    before, after = (
        processor.tokenizer(text, add_special_tokens=False).input_ids
        for text in ("USER: ", "\nWhat is this? ASSISTANT:")
    )
    expected = original.logits([1, *before], inputs["pixel_values"], after)
    assert logits.shape == (len(expected), 320)  # 300 and two, padded to a multiple of 64
    torch.testing.assert_close(logits[:, :VOCABULARY], expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_image_is_padded_to_a_square_as_the_config_says(tmp_path, checkpoint):
    convert_original(checkpoint, tmp_path / "hf", None)
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    image = picture(28, 14)
    square = Image.new(
        "RGB", (28, 28), tuple(int(255 * mean) for mean in processor.image_processor.image_mean)
    )
    square.paste(image, (0, 7))
    one, two = (
        processor.image_processor(images=i, return_tensors="pt")["pixel_values"] for i in (image, square)
    )
    assert torch.equal(one, two)


def test_vision_tower_from_its_own_folder(tmp_path, checkpoint, original):
    source = without_vision(checkpoint, tmp_path / "llava")
    convert_original(source, tmp_path / "hf", checkpoint.parent / TOWER)
    model = load(tmp_path / "hf")
    assert model.dtype == torch.float16
    for name, parameter in original.vision.named_parameters():
        found = model.model.vision_tower.get_parameter(name)
        assert torch.equal(found, parameter.half()), name


def test_tower_named_by_the_checkpoint_is_found_beside_it(tmp_path, checkpoint):
    source = without_vision(checkpoint, tmp_path / "llava")
    with pytest.raises(UserError, match="put its folder beside"):
        convert_original(source, tmp_path / "hf", None)
    shutil.copytree(checkpoint.parent / TOWER, tmp_path / TOWER)
    convert_original(source, tmp_path / "hf", None)
    load(tmp_path / "hf")


def test_new_rows_are_the_mean_and_never_the_best(tmp_path, checkpoint, original):
    convert_original(checkpoint, tmp_path / "hf", None)
    head = load(tmp_path / "hf").lm_head.weight
    torch.testing.assert_close(head[VOCABULARY:], original.llama.lm_head.weight.mean(0).expand(20, -1))
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    assert processor.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [VOCABULARY, VOCABULARY + 1]


def test_conversion_repeats_to_the_byte(tmp_path, checkpoint):
    for name in ("one", "two"):
        convert_original(checkpoint, tmp_path / name, None)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "model-00002-of-00002.safetensors" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize("saved_anew", [False, True])
def test_keys_round_trip(tmp_path, checkpoint, original, saved_anew):
    convert_original(checkpoint, tmp_path / "hf", None)
    if saved_anew:  # transformers 5 writes the vision tower's keys differently
        load(tmp_path / "hf").save_pretrained(tmp_path / "hf")
    converted = {k: t for file in (tmp_path / "hf").glob("*.safetensors") for k, t in load_file(file).items()}
    back = to_original(converted, VOCABULARY)
    assert back.keys() == original.parameters().keys()
    assert all(torch.equal(back[key], p) for key, p in original.parameters().items())


def test_config_of_a_7b_is_known_without_weights_or_tower(tmp_path):
    theirs = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    tower = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "num_attention_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL | theirs | tower | {"num_key_value_heads": 32}))
    assert count_parameters(original_config(tmp_path), [0, 1, 2, 3, 4], "all") == (7063427072, 5 * 202383360)


def test_to_hf_gives_llava_hfs_keys():
    keys = {
        "model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
        "model.layers.3.mlp.up_proj.weight": "language_model.model.layers.3.mlp.up_proj.weight",
        "model.norm.weight": "language_model.model.norm.weight",
        "lm_head.weight": "language_model.lm_head.weight",
        "model.mm_projector.0.bias": "multi_modal_projector.linear_1.bias",
        "model.mm_projector.2.weight": "multi_modal_projector.linear_2.weight",
        "model.vision_tower.vision_tower.vision_model.x.bias": "vision_tower.vision_model.x.bias",
    }
    assert list(to_hf(dict.fromkeys(keys, torch.ones(1)))) == list(keys.values())
    assert list(to_original(dict.fromkeys(keys.values(), torch.ones(1)), 1)) == list(keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "architectures is"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type"),
        ({"num_hidden_layers": 4}, "9 weights do not fit config.json, e.g. language_model.model.layers.3"),
        ({"intermediate_size": 25}, "do not fit config.json"),
        ({"vocab_size": 299}, "does not have the 299 tokens"),
    ],
)
def test_other_kinds_are_refused(tmp_path, checkpoint, change, message):
    source = tmp_path / "changed"
    shutil.copytree(checkpoint, source)
    shutil.copytree(checkpoint.parent / TOWER, tmp_path / TOWER)
    (source / "config.json").write_text(json.dumps(ORIGINAL | change))
    with pytest.raises(UserError, match=message):
        convert_original(source, tmp_path / "hf", None)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("content", [b"torn", pickle.dumps({"a": Path("run me")})])
def test_unreadable_or_foreign_pickles_are_refused(tmp_path, checkpoint, content):
    source = tmp_path / "torn"
    shutil.copytree(checkpoint, source)
    shutil.copytree(checkpoint.parent / TOWER, tmp_path / TOWER)
    (source / "pytorch_model-00001-of-00002.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"00001-of-00002\.bin: cannot be read as weights"):
        convert_original(source, tmp_path / "hf", None)


def test_a_full_or_wrong_cache_folder_is_named(tmp_path, checkpoint, monkeypatch):
    def refused(target):
        with pytest.raises(UserError, match="PLAST_CACHE") as caught:
            convert_original(checkpoint, target, None)
        assert str(target.parent) in str(caught.value)
        assert not target.exists()
        return str(caught.value)

    (tmp_path / "file").touch()
    assert "File exists" in refused(tmp_path / "file" / "hf")
    with monkeypatch.context() as patch:
        patch.setattr(original_llava, "save_file", no_space)
        assert "No space left" in refused(tmp_path / "hf")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "1e-06 GB are free" in refused(tmp_path / "hf")


def no_space(*_):
    raise SafetensorError("I/O error: No space left on device")
