"""LoRA and full fine-tuning on two real ranks, against plain torch and peft; what they export."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_makers import ALONE, masters_of
from support.training_runs import (
    LANGUAGES,
    STEPS,
    continue_run,
    losses,
    make_base,
    make_config,
    make_run,
    train_runs,
)

from plast_train.analysis.models import each_checkpoint
from plast_train.checkpoint.format import Identity, step_name
from plast_train.checkpoint.save import Snapshot, write
from plast_train.config import Config, ModelConfig
from plast_train.context import Context
from plast_train.data.images import load_image
from plast_train.data.questions import Record
from plast_train.data.sampling import plan_training, split_records
from plast_train.lvlm.freezing import all_parameters, changed_weights, freeze_all_but
from plast_train.lvlm.loading import Lvlm, describe_base, load_lvlm
from plast_train.lvlm.lora import MergedWeights, add_adapters, remove_adapters
from plast_train.run_folder import RunFolder
from plast_train.runtime.deepspeed_config import load_deepspeed_config
from plast_train.training.engine import learning_rate
from plast_train.training.export import check_export, export
from plast_train.training.train import parameters_to_train

LAYERS = {"lora": [0, 2], "full": [0, 1, 2]}
LORA = {"method": "lora", "lora_rank": 4, "lora_alpha": 12.0}


def config_of(method: str, **train: Any) -> Config:
    tree = make_config(**train).model_dump(mode="json")
    if method == "full":
        tree["selection"] = {"strategy": "all"}
    tree["train"] |= LORA if method == "lora" else {"method": method}
    return Config.model_validate(tree)


def load(base: Path) -> Lvlm:
    config = ModelConfig(path=str(base), dtype="float32")
    return load_lvlm(describe_base(base), config, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Both methods under ZeRO 2 and 3 on two ranks, one without any image, then resumed in the middle."""
    folder = tmp_path_factory.mktemp("methods")
    base = make_base(folder)
    made = {}
    for method, layers in LAYERS.items():
        for stage in (2, 3):
            name = f"{method}{stage}"
            made[name] = make_run(folder / name, base, config_of(method, deepspeed=f"zero{stage}"), layers)
            if method == "full":
                give_images(made[name])
    made["mixed"] = make_run(folder / "mixed", base, config_of("full", max_steps=3), LAYERS["full"])
    terminal = train_runs(2, list(made.values()))
    again = {
        f"{method}_again": continue_run(made[f"{method}2"], folder / f"{method}-again", [10])
        for method in LAYERS
    }
    train_runs(2, list(again.values()))
    return SimpleNamespace(folder=folder, base=base, terminal=terminal, **made, **again)


def give_images(run: Path) -> None:
    """Every record gets an image, so that the projector is trained too."""
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    for number, record in enumerate(records):
        record["image"] = str(run / f"image-{number - number % 3}.png")
    (run / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def plain_torch(run: Path, base: Path, config: Config) -> tuple[torch.Tensor, Lvlm, dict[str, torch.Tensor]]:
    """The same training by torch and peft alone: one process, one sequence at a time, all logits."""
    lvlm, train = load(base), config.train
    model: Any = lvlm.model
    if train.method == "lora":
        trained: Any = add_adapters(
            model, lvlm.family, LAYERS["lora"], "all", train, config.seed
        )  # torch and peft, no ranks
    else:
        trained = all_parameters(model, lvlm.family, images=True)
    freeze_all_but(model, trained)
    records = [Record(**json.loads(line)) for line in (run / "records.jsonl").read_text().splitlines()]
    numbers, _ = split_records(len(records), train.validation_records, config.seed)
    samples = list(lvlm.prompter(LANGUAGES).translations(records, numbers, train))
    plan = plan_training(samples, train.global_batch, train.tokens_per_row, config.seed, 1.0, train.max_steps)
    optimizer = torch.optim.AdamW(trained.values(), betas=train.betas, weight_decay=train.weight_decay)
    found = []
    for step, planned in enumerate(plan.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, STEPS, train)
        optimizer.zero_grad()
        total = 0.0
        for sequence in (s for trees in planned.rows for tree in trees for s in tree.sequences):
            pixels = lvlm.pixel_values([load_image(sequence.image)]) if sequence.image else None
            logits = model(input_ids=torch.tensor([sequence.tokens]), pixel_values=pixels).logits
            labels = torch.tensor(sequence.tokens[-sequence.labels :])
            loss = torch.nn.functional.cross_entropy(
                logits[0, -sequence.labels - 1 : -1], labels, reduction="sum"
            )
            (loss / planned.labels).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained.values(), train.gradient_clipping)
        optimizer.step()
        found.append(total / planned.labels)
    masters = {name: p.detach().clone() for name, p in trained.items()}
    return torch.tensor(found, dtype=torch.float64), lvlm, masters


@pytest.fixture(scope="module")
def plain(runs: SimpleNamespace) -> dict[str, Any]:
    return {
        method: plain_torch(getattr(runs, f"{method}2"), runs.base, config_of(method)) for method in LAYERS
    }


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs() / b.abs()).max())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("method", LAYERS)
def test_losses_are_those_of_plain_torch(
    runs: SimpleNamespace, plain: dict[str, Any], method: str, stage: int
) -> None:
    found = losses(getattr(runs, f"{method}{stage}"))
    assert len(found) == STEPS and float(found[-1]) < 0.9 * float(found[0])
    assert furthest(found, plain[method][0]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", LAYERS)
def test_a_resumed_run_ends_with_the_same_bits(runs: SimpleNamespace, method: str) -> None:
    once, again = (
        masters_of(run / "checkpoints" / step_name(STEPS))
        for run in (getattr(runs, f"{method}2"), getattr(runs, f"{method}_again"))
    )
    assert once.keys() == again.keys() and all(torch.equal(once[name], again[name]) for name in once)


def exported(run: Path, base: Path) -> Path:
    """The run's export, made by one process; everything else of the base is checked to the byte there."""
    (run / "environment.json").write_text(json.dumps({"packages": {}}))
    counts = {"strategy": "all", "trainable_parameters": 1, "total_parameters": 2, "trainable_fraction": 0.5}
    selection = json.loads((run / "selection.json").read_text()) | counts
    (run / "selection.json").write_text(json.dumps(selection))
    config = Config.model_validate(json.loads(json.dumps(_yaml(run / "config.yaml"))))
    said: list[str] = []
    ranks: Any = SimpleNamespace(on_first=lambda action: action(), say=said.append)
    export(Context(config, RunFolder(run), ranks, load_deepspeed_config(config)))
    return run / "export"


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def inputs(lvlm: Lvlm) -> dict[str, torch.Tensor]:
    prompter = lvlm.prompter(LANGUAGES)
    ids = prompter.tokenizer("USER: How many red dogs are there? ASSISTANT:").input_ids
    return {"input_ids": torch.tensor([ids])}


@pytest.mark.slow
def test_lora_export_is_the_base_with_the_adapters_merged(
    runs: SimpleNamespace, plain: dict[str, Any]
) -> None:
    folder = exported(runs.lora2, runs.base)
    adapters = masters_of(runs.lora2 / "checkpoints" / step_name(STEPS))
    assert all(".lora_A." in name or ".lora_B." in name for name in adapters)
    before, after = (dict(load(path).model.named_parameters()) for path in (runs.base, folder))
    merged = {
        name.replace(".lora_A.default", ""): before[name.replace(".lora_A.default", "")]
        + 12.0 / 4 * (adapters[name.replace("lora_A", "lora_B")] @ adapters[name])
        for name in adapters
        if ".lora_A." in name
    }
    assert len(merged) == 7 * len(LAYERS["lora"])
    for name, parameter in after.items():
        assert torch.equal(parameter, merged.get(name, before[name])), name
    assert check_export(runs.base, folder, merged) == len(merged)

    # What the adapted model of the ranks answers, the exported one does.
    lvlm = load(runs.base)
    model: Any = lvlm.model
    config = config_of("lora")
    parameters = add_adapters(model, lvlm.family, LAYERS["lora"], "all", config.train, 7)
    with torch.no_grad():
        base_logits = model(**inputs(lvlm)).logits
        for name, parameter in parameters.items():
            parameter.copy_(adapters[name])
        adapted = model(**inputs(lvlm)).logits
        ours = load(folder).model(**inputs(lvlm)).logits  # type: ignore[operator]
    assert float((adapted - base_logits).abs().max()) > 0.1
    torch.testing.assert_close(ours, adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_full_export_differs_from_the_base_in_all_but_the_vision_tower(runs: SimpleNamespace) -> None:
    folder = exported(runs.full2, runs.base)
    trained = masters_of(runs.full2 / "checkpoints" / step_name(STEPS))
    before, after = (dict(load(path).model.named_parameters()) for path in (runs.base, folder))
    frozen = {name for name in before if torch.equal(before[name], after[name])}
    assert frozen == {name for name in before if "vision_tower" in name}
    assert set(trained) == set(before) - frozen
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= set(trained)
    assert any("projector" in name for name in trained)
    assert all(torch.equal(after[name], trained[name]) for name in trained)


@pytest.mark.slow
def test_frozen_tensors_are_unchanged_and_shares_recorded(runs: SimpleNamespace) -> None:
    proofs = {
        name: json.loads((getattr(runs, name) / "freezing.json").read_text()) for name in ("lora2", "full3")
    }
    everything = dict(load(runs.base).model.named_parameters())
    assert proofs["lora2"]["frozen_tensors_unchanged"] == len(everything)
    tower = sum(p.numel() for name, p in everything.items() if "vision_tower" in name)
    assert proofs["full3"]["frozen_parameters"] == tower
    assert "LoRA adapters of rank 4 on layers [0, 2] (all)" in runs.terminal


@pytest.mark.slow
def test_full_with_samples_without_image_leaves_the_projector(runs: SimpleNamespace) -> None:
    trained = json.loads((runs.mixed / "freezing.json").read_text())["trained_tensors"]
    assert not any("projector" in name for name in trained) and "lm_head.weight" in trained


@pytest.mark.slow
def test_adapters_begin_as_the_base_and_leave_it_as_it_was(runs: SimpleNamespace) -> None:
    lvlm = load(runs.base)
    model: Any = lvlm.model
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        before = model(**inputs(lvlm)).logits
        train = config_of("lora").train
        made = [add_adapters(model, lvlm.family, [1], "ffn", train, seed) for seed in (3,)]
        assert torch.equal(model(**inputs(lvlm)).logits, before)
        first = {name: p.clone() for name, p in made[0].items()}
        remove_adapters(model)
        assert [name for name, _ in model.named_parameters()] == names
        again = add_adapters(model, lvlm.family, [1], "ffn", train, 3)
        assert all(torch.equal(first[name], again[name]) for name in first) and len(first) == 6
        remove_adapters(model)
        assert torch.equal(model(**inputs(lvlm)).logits, before)
    changed = changed_weights(model, lvlm.family, [1], "ffn", train, True)
    assert sorted(MergedWeights(runs.base, first, 1.0)) == sorted(changed)


@pytest.mark.parametrize("method", ["layers", "lora"])
def test_analyses_follow_the_checkpoints(tmp_path: Path, method: str) -> None:
    base = make_base(tmp_path)
    run = RunFolder(make_run(tmp_path / "run", base, config_of(method), [0, 2]))
    ranks: Any = SimpleNamespace(**vars(ALONE), broadcast=lambda value: value, share=lambda tensor: None)
    context = Context(config_of(method), run, ranks, {"zero_optimization": {"stage": 2}})
    context.lvlm = load(base)
    model: Any = context.lvlm.model
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained = parameters_to_train(context, [0, 2], "all")
    shapes = {name: list(p.shape) for name, p in trained.items()}
    identity = Identity(context.lvlm.fingerprint, [0, 2], "all", shapes, {})
    generator, saved = torch.Generator().manual_seed(0), {}
    for step in (1, 2):
        saved[step] = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        tensors = {f"{n}@0": t.flatten().expand(3, -1).contiguous() for n, t in saved[step].items()}
        snap = Snapshot(step, 2, tensors | {"rng.cpu": torch.get_rng_state()})
        write(snap, run.checkpoints, identity, ALONE, 10)
    remove_adapters(model)
    seen = []
    for step in each_checkpoint(context):
        expected = before | saved[step] if method == "layers" else adapted(before, saved[step])
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter, expected[name], msg=name)
        seen.append(step)
    assert seen == [1, 2]


def adapted(base: dict[str, torch.Tensor], adapters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base with the adapters of `LORA` merged."""
    merged = {
        name.replace(".lora_A.default", ""): base[name.replace(".lora_A.default", "")]
        + 12.0 / 4 * (adapters[name.replace("lora_A", "lora_B")] @ first)
        for name, first in adapters.items()
        if ".lora_A." in name
    }
    assert merged
    return base | merged


@pytest.mark.slow
def test_checkpoints_hold_the_adapters_alone(runs: SimpleNamespace) -> None:
    shards = (runs.lora3 / "checkpoints" / step_name(STEPS)).glob("*.safetensors")
    keys = {key for shard in shards for key in load_file(shard)}
    assert all(".lora_" in key or key.startswith("rng.") for key in keys)
