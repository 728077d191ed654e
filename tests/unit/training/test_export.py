import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from plast_train.checkpoint.format import Identity
from plast_train.checkpoint.save import Snapshot, write
from plast_train.config import Config
from plast_train.errors import Interrupted, UserError
from plast_train.lvlm.families import FAMILIES
from plast_train.lvlm.freezing import trainable_parameters
from plast_train.lvlm.loading import describe_base
from plast_train.lvlm.weights import disk_tensors
from plast_train.run_folder import RunFolder
from plast_train.runtime import late_files
from plast_train.training import export as exporting
from plast_train.training.export import check_export, export, write_export

LAYERS = [0, 2]
DECODER = FAMILIES["llava"].decoder_path

# How other writers name the keys that transformers 5 writes.
STYLES = {
    "transformers 5": [],
    "parameter names": [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head", "lm_head"),
        ("vision_tower.", "model.vision_tower.vision_model."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ],
    "llava-hf": [("vision_tower.", "vision_tower.vision_model.")],
}


def save_base(folder: Path, dtype: torch.dtype = torch.float32, style: str = "transformers 5") -> Path:
    """A LLaVA with random weights, in several shards."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, vocab_size=40
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    )
    model.to(dtype).save_pretrained(folder, max_shard_size="8KB")
    renamed = dict(STYLES[style])

    def rename(key: str) -> str:
        old = next((old for old in renamed if key.startswith(old)), None)
        return key if old is None else renamed[old] + key.removeprefix(old)

    index = folder / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    for name in set(tree["weight_map"].values()):
        tensors = load_file(folder / name)
        save_file({rename(k): v for k, v in tensors.items()}, folder / name, {"format": "pt", "note": "kept"})
    tree["weight_map"] = {rename(key): name for key, name in tree["weight_map"].items()}
    index.write_text(json.dumps(tree))
    (folder / "README.md").write_text("the base's own card")
    (folder / "training_args.bin").write_bytes(b"not to be copied")
    return folder


def load(folder: Path) -> LlavaForConditionalGeneration:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


def made_up_masters(base: Path, modules: str = "all") -> dict[str, torch.Tensor]:
    parameters = trainable_parameters(load(base), FAMILIES["llava"], LAYERS, modules)
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}


def hashes(base: Path) -> dict[str, str]:
    files: dict[str, str] = describe_base(base)["files"]
    return files


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_only_trained_tensors_differ_from_the_base(tmp_path, style, dtype):
    base = save_base(tmp_path / "base", dtype, style)
    masters = made_up_masters(base)
    write_export(base, hashes(base), masters, tmp_path / "export", "card")
    before, after = (dict(load(folder).named_parameters()) for folder in (base, tmp_path / "export"))
    assert list(before) == list(after)
    for name, parameter in after.items():
        assert parameter.dtype == dtype
        expected = masters[name].to(dtype) if name in masters else before[name]
        assert torch.equal(parameter, expected), name
    assert len(masters) == 9 * len(LAYERS)
    assert check_export(base, tmp_path / "export", masters) == len(masters)


def test_files_are_those_of_the_base(tmp_path):
    base = save_base(tmp_path / "base")
    write_export(base, hashes(base), made_up_masters(base), tmp_path / "export", "our card")
    theirs, ours = ({path.name for path in f.iterdir()} for f in (base, tmp_path / "export"))
    assert theirs - ours == {"training_args.bin"}
    assert ours <= theirs
    assert len([name for name in ours if name.endswith(".safetensors")]) > 3
    assert (tmp_path / "export" / "README.md").read_text() == "our card"
    for name in ("config.json", "model.safetensors.index.json"):
        assert (base / name).read_bytes() == (tmp_path / "export" / name).read_bytes()


def test_one_module_kind_can_be_trained_alone(tmp_path):
    base = save_base(tmp_path / "base")
    masters = made_up_masters(base, "ffn")
    write_export(base, hashes(base), masters, tmp_path / "export", "card")
    assert check_export(base, tmp_path / "export", masters) == 3 * len(LAYERS)


@pytest.mark.parametrize("style", STYLES)
def test_disk_keys_are_the_decoders_and_not_the_vision_towers(tmp_path, style):
    base = save_base(tmp_path / "base", style=style)
    # q_proj.weight alone exists in both towers under the same inner name.
    found = disk_tensors(base, [f"{DECODER}.layers.0.self_attn.q_proj.weight"])
    (stored,) = found.values()
    assert stored.shape == (16, 16)
    assert "vision" not in stored.key


def test_parameters_of_the_vision_tower_are_refused(tmp_path):
    base = save_base(tmp_path / "base")
    with pytest.raises(ValueError, match="never trained"):
        disk_tensors(base, ["model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"])


def test_a_tensor_the_base_lacks_is_refused(tmp_path):
    base = save_base(tmp_path / "base")
    with pytest.raises(UserError, match="0 places"):
        disk_tensors(base, [f"{DECODER}.layers.3.self_attn.q_proj.weight"])


def test_check_finds_what_was_not_trained(tmp_path):
    base = save_base(tmp_path / "base")
    masters = made_up_masters(base)
    exported = tmp_path / "export"
    write_export(base, hashes(base), masters, exported, "card")
    norm = disk_tensors(base, [f"{DECODER}.layers.1.input_layernorm.weight"]).popitem()[1]
    file = exported / norm.file.name
    whole = file.read_bytes()
    file.write_bytes(whole[: norm.stop - 1] + bytes([whole[norm.stop - 1] ^ 1]) + whole[norm.stop :])
    with pytest.raises(RuntimeError, match=r"layers\.1\.input_layernorm\.weight differs"):
        check_export(base, exported, masters)
    file.write_bytes(whole.replace(b"kept", b"lost"))
    with pytest.raises(RuntimeError, match="other keys, dtypes or shapes"):
        check_export(base, exported, masters)
    file.write_bytes(whole + b"\0")
    with pytest.raises(RuntimeError, match="another size"):
        check_export(base, exported, masters)
    file.unlink()
    with pytest.raises(RuntimeError, match="missing"):
        check_export(base, exported, masters)


def test_another_base_under_the_same_name_is_refused(tmp_path):
    base = save_base(tmp_path / "base")
    known, masters = hashes(base), made_up_masters(base)
    shard = sorted(base.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=f"{shard.name}: is not the file that the run started with"):
        write_export(base, known, masters, tmp_path / "export", "card")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), torch.float32), (1e6, torch.float16), (float("inf"), torch.bfloat16)]
)
def test_weights_that_are_not_finite_are_refused(tmp_path, value, dtype):
    base = save_base(tmp_path / "base", dtype)
    masters = made_up_masters(base)
    next(iter(masters.values()))[0, 0] = value
    with pytest.raises(UserError, match="not finite"):
        write_export(base, hashes(base), masters, tmp_path / "export", "card")
    assert not (tmp_path / "export").exists()


def test_plain_transformers_answers_with_the_trained_weights(tmp_path, tiny_folder):
    masters = made_up_masters(tiny_folder)
    write_export(tiny_folder, hashes(tiny_folder), masters, tmp_path / "export", "card")
    trained = load(tiny_folder)
    for name, tensor in masters.items():
        trained.get_parameter(name).data.copy_(tensor)
    processor = AutoProcessor.from_pretrained(tmp_path / "export")
    inputs = processor(
        text="USER: <image>\nWhat? ASSISTANT:", images=Image.new("RGB", (48, 48)), return_tensors="pt"
    )
    with torch.no_grad():
        logits = [
            model.eval()(**inputs).logits for model in (trained, load(tmp_path / "export"), load(tiny_folder))
        ]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


class OneRank:
    """The part of `Ranks` that checkpoints and exporting use, for one process."""

    rank, world, is_first = 0, 1, True

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_first(self, action):
        return action()

    def gather(self, value):
        return [value]

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def context(tmp_path: Path) -> SimpleNamespace:
    """A run that has been trained, after step 7."""
    base = save_base(tmp_path / "base")
    masters = made_up_masters(base)
    described, run, ranks = describe_base(base), RunFolder(tmp_path / "run"), OneRank()
    shapes = {name: list(tensor.shape) for name, tensor in masters.items()}
    state = {f"{name}@0": t.flatten().repeat(3, 1) for name, t in masters.items()}
    identity = Identity(described["fingerprint"], LAYERS, "all", shapes, {})
    write(
        Snapshot(7, 2, state | {"rng.cpu": torch.get_rng_state()}),
        run.checkpoints,
        identity,
        ranks,
        keep=2,
    )
    selection = {
        "selected_layers": LAYERS,
        "modules": "all",
        "strategy": "msd",
        "trainable_parameters": 10,
        "total_parameters": 100,
        "trainable_fraction": 0.1,
    }
    run.selection.write_text(json.dumps(selection))
    run.environment.write_text(json.dumps({"packages": {"torch": "2.6.0", "deepspeed": None}}))
    config = Config.model_validate(
        {"model": {"path": str(base)}, "data": {"questions": ["a/<b>|`q.jsonl"], "languages": ["en", "pt"]}}
    )
    return SimpleNamespace(config=config, run=run, ranks=ranks, base=described, masters=masters)


def test_stage_exports_the_newest_checkpoint(context):
    assert export(context) == [context.run.export]
    after = dict(load(context.run.export).named_parameters())
    assert all(torch.equal(after[name], master) for name, master in context.masters.items())
    assert "18 tensors of the base replaced" in context.ranks.said[-1]
    export(context)  # again, over the first
    assert not list(context.run.path.glob(".*"))


def test_a_stop_signal_reaches_the_copying_and_the_comparing(context, monkeypatch):
    """After so many chunks; the same command then exports as if nothing had been."""
    asked = 0

    def stop_requested():
        nonlocal asked
        asked += 1
        return asked == after

    monkeypatch.setattr(exporting, "stop_requested", stop_requested)
    after = 10**9
    export(context)
    for after in (1, asked // 2, asked):
        asked = 0
        with pytest.raises(Interrupted):
            export(context)
        assert asked == after
    export(context)
    assert not list(context.run.path.glob(".*"))


def test_card_says_what_was_done_and_escapes_what_it_quotes(context):
    export(context)
    card = (context.run.export / "README.md").read_text()
    assert "| Trained | layers \\[0, 2\\] (all); decoder layers counted from 0" in card
    assert "| Optimizer steps | 7 |" in card
    assert "torch 2.6.0" in card
    assert "deepspeed" not in card
    assert "\\<b\\>\\|\\`q.jsonl" in card
    assert str(context.run.path.parent) not in card


def test_stage_refuses_a_checkpoint_of_another_base(context):
    context.base["fingerprint"] = "0" * 64
    with pytest.raises(UserError, match="was made from another base"):
        export(context)
    assert not context.run.export.exists()


def test_stage_refuses_a_torn_checkpoint(context, monkeypatch):
    monkeypatch.setattr(late_files, "SECONDS_TO_SEE", 0)
    shard = next(context.run.checkpoints.glob("*/shard-*"))
    shard.write_bytes(shard.read_bytes()[:-4])
    context.run.publish_record("train", {}, {}, [context.run.checkpoints])
    with pytest.raises(UserError, match=r"step-00000007.*the newest whole checkpoint"):
        export(context)
    assert context.run.record("train") is None  # so that the same command trains on


def test_stage_without_a_checkpoint_says_so(context):
    context.run = RunFolder(context.run.path.parent / "empty")
    with pytest.raises(UserError, match="holds no checkpoint"):
        export(context)
