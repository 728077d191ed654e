"""Training under ZeRO 1, 2 and 3 on real ranks, against plain torch; resuming; what stops a run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_makers import masters_of, verify
from support.training_runs import (
    LANGUAGES,
    STEPS,
    continue_run,
    losses,
    make_base,
    make_config,
    make_run,
    metrics,
    start_ranks,
    train_runs,
)

from plast_train.checkpoint.format import checkpoints as published
from plast_train.checkpoint.format import step_name
from plast_train.config import Config, ModelConfig
from plast_train.data.images import load_image
from plast_train.data.questions import Record
from plast_train.data.sampling import TrainingPlan, plan_training, split_records
from plast_train.lvlm.freezing import freeze_all_but, trainable_parameters
from plast_train.lvlm.loading import Lvlm, describe_base, load_lvlm
from plast_train.training.engine import learning_rate
from plast_train.training.freezing_proof import describe_freezing, frozen_hashes, require_unchanged

SHORT = 6  # steps of the bfloat16 run
INFINITE = 3  # the step at which a rank's gradient is not finite


def load(base: Path) -> Lvlm:
    config = ModelConfig(path=str(base), dtype="float32")
    return load_lvlm(describe_base(base), config, torch.device("cpu"), None)


def plan_of(run: Path, lvlm: Lvlm, config: Config) -> TrainingPlan:
    records = [Record(**json.loads(line)) for line in (run / "records.jsonl").read_text().splitlines()]
    numbers, _ = split_records(len(records), config.train.validation_records, config.seed)
    train = config.train
    samples = list(lvlm.prompter(LANGUAGES).translations(records, numbers, train))
    return plan_training(samples, train.global_batch, train.tokens_per_row, config.seed, 1.0, train.max_steps)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Uninterrupted runs on two ranks: one of each ZeRO stage, one in bfloat16, one that meets a NaN, two
    whose gradient is not finite and one that cannot save."""
    folder = tmp_path_factory.mktemp("training")
    base = make_base(folder)
    made = {
        f"zero{n}": make_run(folder / f"zero{n}", base, make_config(deepspeed=f"zero{n}")) for n in (1, 2, 3)
    }
    short = make_config(every_steps=3, deepspeed="zero3", dtype="bfloat16", max_steps=SHORT)
    made["bfloat16"] = make_run(folder / "bfloat16", base, short)
    broken, step, number = break_base(folder, base, made["zero2"])
    made["nan"] = make_run(folder / "nan", broken, make_config(every_steps=1000, every_minutes=1e-9))
    for name in ("zero2", "zero3"):
        config = make_config(every_steps=1, deepspeed=name, dtype="bfloat16", max_steps=SHORT)
        made[f"infinite_{name}"] = make_run(folder / f"infinite-{name}", base, config)
        (made[f"infinite_{name}"] / "infinite_gradient.txt").write_text(str(INFINITE))
    made["unwritable"] = make_run(folder / "unwritable", base, make_config())
    (made["unwritable"] / "checkpoints").write_text("where a folder should be")
    train_runs(2, list(made.values()))
    return SimpleNamespace(folder=folder, base=base, nan_step=step, nan_record=number, **made)


def break_base(folder: Path, base: Path, run: Path) -> tuple[Path, int, int]:
    """A base with a NaN in the embedding of a token; the first step (after the first) and a record that
    meet it."""
    broken = folder / "broken"
    shutil.copytree(base, broken)
    lvlm = load(base)
    plan = plan_of(run, lvlm, make_config())
    seen = {lvlm.config["image_token_index"]}  # its embedding is never read
    for step, planned in enumerate(plan.steps, start=1):
        sequences = [s for trees in planned.rows for tree in trees for s in tree.sequences]
        fresh = [(s, token) for s in sequences for token in s.tokens if token not in seen]
        if step > 1 and fresh:
            break
        seen |= {token for s in sequences for token in s.tokens}
    assert fresh, "no token that the first step does not meet"
    weights = load_file(broken / "model.safetensors")
    weights["language_model.model.embed_tokens.weight"][fresh[0][1]] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    return broken, step, fresh[0][0].key.record


@pytest.fixture(scope="module")
def resumed(runs: SimpleNamespace) -> SimpleNamespace:
    """Runs that were stopped or killed and go on, on the same and on other ranks and ZeRO stages."""
    folder = runs.folder
    killed = make_run(folder / "killed", runs.base, make_config())
    stop_at(killed, 3, lambda ranks: ranks[1].send_signal(signal.SIGUSR1))
    saved_by_signal = published(killed / "checkpoints")[0].name
    stop_at(killed, random.randrange(7, 15), lambda ranks: [rank.kill() for rank in ranks])

    one = continue_run(runs.zero2, folder / "one", [10], recompute=True)
    train_runs(1, [one])

    two = continue_run(one, folder / "two", [15], recompute=False)
    three = continue_run(runs.zero2, folder / "three", [10], deepspeed="zero3", recompute=True)
    bfloat16 = continue_run(runs.bfloat16, folder / "bfloat16-again", [3])
    torn = continue_run(runs.zero1, folder / "torn", [5, 10, 15, 20])
    tear(torn)
    other = continue_run(runs.zero2, folder / "other", [10])
    description = json.loads((other / "base.json").read_text())
    (other / "base.json").write_text(json.dumps(description | {"fingerprint": "0" * 64}))
    faster = continue_run(runs.zero2, folder / "faster", [10], learning_rate=6e-3, max_steps=2)
    terminal = train_runs(2, [killed, two, three, bfloat16, torn, other, faster])
    return SimpleNamespace(
        killed=killed, saved_by_signal=saved_by_signal, one=one, two=two, three=three, bfloat16=bfloat16,
        torn=torn, other=other, faster=faster, terminal=terminal,
    )  # fmt: skip


def stop_at(run: Path, step: int, stop: Any) -> None:
    """Starts the run, waits for that many lines of metrics and stops it through its ranks' processes."""
    process = start_ranks(2, [run])
    deadline = time.monotonic() + 600
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < step:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    stop([p for p in psutil.Process(process.pid).children() if "ranks_train.py" in " ".join(p.cmdline())])
    process.communicate(timeout=300)


def tear(run: Path) -> None:
    """Breaks the three newest of a run's four checkpoints, each in another way."""
    newest, second, third, _ = published(run / "checkpoints")
    shard = newest / "shard-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    os.truncate(second / "shard-00000-of-00002.safetensors", 1000)
    (third / "shard-00001-of-00002.safetensors").unlink()


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs() / b.abs()).max())


def plain_torch_losses(run: Path, base: Path, config: Config) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same training without DeepSpeed, packing or ranks: one sequence at a time, all logits."""
    lvlm = load(base)
    model, train = lvlm.model, config.train
    trained = trainable_parameters(model, lvlm.family, [0, 1], "all")
    freeze_all_but(model, trained)
    optimizer = torch.optim.AdamW(trained.values(), betas=train.betas, weight_decay=train.weight_decay)
    found = []
    for step, planned in enumerate(plan_of(run, lvlm, config).steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, STEPS, train)
        optimizer.zero_grad()
        total = 0.0
        for sequence in (s for trees in planned.rows for tree in trees for s in tree.sequences):
            images = (
                {"pixel_values": lvlm.pixel_values([load_image(sequence.image)])} if sequence.image else {}
            )
            ids = torch.tensor([sequence.tokens])
            logits = model(input_ids=ids, **images).logits[0, -sequence.labels - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, -sequence.labels :], reduction="sum")
            (loss / planned.labels).backward()
            total += loss.item() / planned.labels
        torch.nn.utils.clip_grad_norm_(list(trained.values()), train.gradient_clipping)
        optimizer.step()
        found.append(total)
    return torch.tensor(found, dtype=torch.float64), {name: p.detach() for name, p in trained.items()}


@pytest.fixture(scope="module")
def plain(runs: SimpleNamespace) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return plain_torch_losses(runs.zero2, runs.base, make_config())


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_zero_follows_plain_torch(runs: SimpleNamespace, plain: Any, stage: str) -> None:
    run: Path = getattr(runs, stage)
    expected, weights = plain
    assert expected[-1] < 0.8 * expected[0], "the model must learn, or the comparison says little"
    assert len(losses(run)) == STEPS
    assert relative_difference(losses(run), expected) < 1e-4
    masters = masters_of(run / "checkpoints" / step_name(STEPS))
    assert masters.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.allclose(masters[name], weight, atol=1e-3), name


def test_metrics_and_proof(runs: SimpleNamespace) -> None:
    lines = metrics(runs.zero2)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "validation_loss" in line] == [10, 20]
    assert lines[-1]["validation_loss"].keys() == {"de", "pt"}
    assert lines[-1]["validation_loss"]["de"] < lines[9]["validation_loss"]["de"]
    assert lines[3]["learning_rate"] == 5e-3 and lines[3]["mfu"] is None
    assert all(line["samples_per_second"] > 0 and 0 <= line["data_wait_share"] < 1 for line in lines)
    assert list((runs.zero2 / "tensorboard").iterdir())
    proof = json.loads((runs.zero2 / "freezing.json").read_text())
    lvlm = load(runs.base)
    elements = sum(p.numel() for p in trainable_parameters(lvlm.model, lvlm.family, [0, 1], "all").values())
    assert proof["trained_parameters"] == elements
    assert proof["trained_parameters"] + proof["frozen_parameters"] == lvlm.model.num_parameters()


def test_a_changed_frozen_tensor_is_noticed(runs: SimpleNamespace) -> None:
    lvlm = load(runs.base)
    trained = trainable_parameters(lvlm.model, lvlm.family, [0], "all")
    before = frozen_hashes(lvlm.model, trained)
    alone: Any = SimpleNamespace(gather=lambda value: [value])
    require_unchanged(before, frozen_hashes(lvlm.model, trained), alone)
    with torch.no_grad():
        lvlm.model.lm_head.weight[0, 0] += 1e-6  # type: ignore[union-attr, index, operator]
    with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
        require_unchanged(before, frozen_hashes(lvlm.model, trained), alone)
    lvlm.model.lm_head.weight.requires_grad_(True)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
        describe_freezing(lvlm.model, trained)


def test_nan_stops_the_run_and_names_records_and_checkpoint(runs: SimpleNamespace) -> None:
    message = (runs.nan / "Diverged.txt").read_text()
    assert f"step {runs.nan_step} is nan" in message
    assert f"record-{runs.nan_record}" in message
    last = published(runs.nan / "checkpoints")[0]
    assert last.name == step_name(runs.nan_step - 1) and str(last) in message
    assert all(tensor.isfinite().all() for tensor in masters_of(last).values())
    assert len(metrics(runs.nan)) == runs.nan_step - 1


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_an_infinite_gradient_stops_the_run_before_the_step(runs: SimpleNamespace, stage: str) -> None:
    """One rank's is, while every loss is finite."""
    run = getattr(runs, f"infinite_{stage}")
    message = (run / "Diverged.txt").read_text()
    assert f"the gradient of step {INFINITE} is not finite" in message
    plan = plan_of(run, load(runs.base), make_config())
    numbers = {s.key.record for row in plan.steps[INFINITE - 1].rows for tree in row for s in tree.sequences}
    assert all(f"record-{number}" in message for number in numbers)
    last = published(run / "checkpoints")[0]
    assert last.name == step_name(INFINITE - 1) and str(last) in message
    for rank in range(2):  # what the stopped ranks hold is what they saved after the step before
        held = load_file(run / f"held-{rank}.safetensors")
        saved = load_file(last / f"shard-{rank:05d}-of-00002.safetensors")
        assert held.keys() == saved.keys() and all(torch.equal(held[name], saved[name]) for name in held)
    assert len(metrics(run)) == INFINITE - 1


def test_a_failed_save_ends_the_run_on_all_ranks(runs: SimpleNamespace) -> None:
    message = (runs.unwritable / "UserError.txt").read_text()
    assert "rank 0 cannot write the checkpoint" in message and "File exists" in message
    assert 5 <= len(metrics(runs.unwritable)) <= 10  # saved behind the loop, it fails before the next save


def same_end(run: Path, reference: Path, step: int) -> bool:
    found, expected = (masters_of(r / "checkpoints" / step_name(step)) for r in (run, reference))
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


def test_killed_runs_end_with_the_same_bits(runs: SimpleNamespace, resumed: SimpleNamespace) -> None:
    assert same_end(resumed.killed, runs.zero2, STEPS)
    assert torch.equal(losses(resumed.killed), losses(runs.zero2))
    assert [line["step"] for line in metrics(resumed.killed)] == list(range(1, STEPS + 1))


def test_stop_signal_saves_at_once(resumed: SimpleNamespace) -> None:
    message = (resumed.killed / "Interrupted.txt").read_text()
    assert resumed.saved_by_signal in message
    assert int(resumed.saved_by_signal.removeprefix("step-")) >= 3


def test_bfloat16_resumes_bit_exactly(runs: SimpleNamespace, resumed: SimpleNamespace) -> None:
    assert len(losses(resumed.bfloat16)) == SHORT
    assert same_end(resumed.bfloat16, runs.bfloat16, SHORT)
    assert torch.equal(losses(resumed.bfloat16), losses(runs.bfloat16))


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_other_ranks_and_stages_go_on_with_the_curve(
    runs: SimpleNamespace, resumed: SimpleNamespace, name: str
) -> None:
    run = getattr(resumed, name)
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    assert relative_difference(losses(run), losses(runs.zero2)) < 1e-3
    manifest = verify(run / "checkpoints" / step_name(STEPS))
    expected = {"one": (1, 2), "two": (2, 2), "three": (2, 3)}[name]
    assert (manifest["world_size"], manifest["zero_stage"]) == expected


def test_broken_checkpoints_are_skipped(runs: SimpleNamespace, resumed: SimpleNamespace) -> None:
    assert f"resumed from {resumed.torn / 'checkpoints' / step_name(5)}" in resumed.terminal
    for step, problem in ((20, "SHA-256"), (15, "has 1000 bytes"), (10, "is missing")):
        line = next(
            x for x in resumed.terminal.splitlines() if f"torn/checkpoints/step-{step:08d} is broken" in x
        )
        assert problem in line and "shard-0000" in line
    assert same_end(resumed.torn, runs.zero1, STEPS)


def test_another_base_is_refused(resumed: SimpleNamespace) -> None:
    message = (resumed.other / "UserError.txt").read_text()
    assert "was made from another base" in message and "0" * 16 in message


def test_changed_settings_train_anew_and_keep_the_old(resumed: SimpleNamespace) -> None:
    assert "train.learning_rate 0.005 → 0.006" in resumed.terminal
    assert (resumed.faster / "checkpoints-before-1" / step_name(10)).is_dir()
    assert [line["step"] for line in metrics(resumed.faster)] == [1, 2]
