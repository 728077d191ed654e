"""The gradient's norm, before and after clipping, against plain torch on 1, 2 and 3 ranks under ZeRO 1 to 3.

AdamW ignores the scale of gradients and every other training test clips them, so a wrong weight of the loss
shows here alone.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.training_runs import (
    LANGUAGES,
    make_base,
    make_config,
    make_run,
    metrics,
    start_ranks,
)

from plast_train.checkpoint.format import step_name
from plast_train.config import Config, ModelConfig
from plast_train.context import Context
from plast_train.data.images import load_image
from plast_train.data.sampling import plan_training, split_records
from plast_train.lvlm.freezing import freeze_all_but, trainable_parameters
from plast_train.lvlm.loading import describe_base, load_lvlm
from plast_train.run_folder import RunFolder
from plast_train.training.engine import learning_rate

STEPS = 2
WORLDS = (1, 2, 3)
# No clipping, a limit below every norm and one above.
OFF, BELOW, ABOVE = CLIPS = (0.0, 0.25, 1e3)
# Ranks, ZeRO stage, limit. The reported norm is that before clipping, so one below the norm tests both.
WAYS = [(world, zero, BELOW) for world in WORLDS for zero in (1, 2, 3)]
WAYS += [(1, 2, OFF), (2, 1, OFF), (2, 2, OFF), (2, 3, OFF), (3, 2, OFF), (2, 2, ABOVE)]
TOLERANCE = 1e-3


def config_of(zero: int, clip: float) -> Config:
    # A row of 200 tokens holds one sequence, so a step has 5 rows: on 2 and 3 ranks some do not count.
    sizes = {"global_batch": 5, "tokens_per_row": 200, "max_steps": STEPS, "validation_records": 1}
    return make_config(every_steps=1, deepspeed=f"zero{zero}", gradient_clipping=clip, **sizes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The runs of `WAYS` and, as the control, one whose loss weight lacks the number of ranks. One launch per
    number of ranks, all at the same time."""
    folder = tmp_path_factory.mktemp("norms")
    base = make_base(folder)
    made = {
        (world, zero, clip): make_run(folder / f"{world}-zero{zero}-{clip:g}", base, config_of(zero, clip))
        for world, zero, clip in WAYS
    }
    wrong = make_run(folder / "wrong", base, config_of(2, OFF))
    (wrong / "without_world.txt").touch()
    of_world = {world: [run for way, run in made.items() if way[0] == world] for world in WORLDS}
    of_world[2].append(wrong)
    launches = [start_ranks(world, runs) for world, runs in of_world.items()]
    for world, process in zip(WORLDS, launches, strict=True):
        try:
            process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, f"{world} ranks"
    return SimpleNamespace(base=base, made=made, wrong=wrong)


@pytest.fixture(scope="module")
def plain(runs: SimpleNamespace) -> dict[float, list[float]]:
    """The norms by torch alone, for each limit: one process, one sequence at a time, all logits."""
    return {clip: plain_norms(runs.wrong, runs.base, config_of(2, clip)) for clip in CLIPS}


def plain_norms(run: Path, base: Path, config: Config) -> list[float]:
    model_config = ModelConfig(path=str(base), dtype="float32")
    lvlm = load_lvlm(describe_base(base), model_config, torch.device("cpu"), None)
    model: Any = lvlm.model
    train = config.train
    trained = trainable_parameters(model, lvlm.family, [0, 1], "all")
    freeze_all_but(model, trained)
    records = Context(config, RunFolder(run), None, {}).records  # type: ignore[arg-type]
    numbers, _ = split_records(len(records), train.validation_records, config.seed)
    samples = list(lvlm.prompter(LANGUAGES).translations(records, numbers, train))
    plan = plan_training(samples, train.global_batch, train.tokens_per_row, config.seed, 1.0, STEPS)
    assert plan.rows_per_step == 5
    optimizer = torch.optim.AdamW(trained.values(), betas=train.betas, weight_decay=train.weight_decay)
    norms = []
    for step, planned in enumerate(plan.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, STEPS, train)
        optimizer.zero_grad()
        for sequence in (s for trees in planned.rows for tree in trees for s in tree.sequences):
            pixels = lvlm.pixel_values([load_image(sequence.image)]) if sequence.image else None
            ids = torch.tensor([sequence.tokens])
            logits = model(input_ids=ids, pixel_values=pixels).logits[0, -sequence.labels - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, -sequence.labels :], reduction="sum")
            (loss / planned.labels).backward()
        limit = train.gradient_clipping or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(trained.values()), limit)))
        optimizer.step()
    return norms


def first_moment_norm(run: Path) -> float:
    """Of the checkpoint after step 1, where the moment is (1 - β₁) times the gradient that Adam was given."""
    squares = 0.0
    for shard in (run / "checkpoints" / step_name(1)).glob("*.safetensors"):
        squares += sum(
            float(part[1].double().square().sum()) for key, part in load_file(shard).items() if "@" in key
        )
    return squares**0.5


@pytest.mark.parametrize(("world", "zero", "clip"), WAYS)
def test_norms_are_those_of_plain_torch(
    runs: SimpleNamespace, plain: dict[float, list[float]], world: int, zero: int, clip: float
) -> None:
    run = runs.made[world, zero, clip]
    assert all(BELOW < norm < ABOVE for norm in plain[clip]), "the limits must lie on both sides"
    assert [line["gradient_norm"] for line in metrics(run)] == pytest.approx(plain[clip], rel=TOLERANCE)
    given = min(plain[clip][0], clip) if clip else plain[clip][0]
    beta = config_of(zero, clip).train.betas[0]
    assert first_moment_norm(run) / (1 - beta) == pytest.approx(given, rel=TOLERANCE)


def test_a_loss_weight_without_the_ranks_is_noticed(
    runs: SimpleNamespace, plain: dict[float, list[float]]
) -> None:
    """The control: the comparison above tells the norm from the one that the wrong weight gives."""
    found = metrics(runs.wrong)[0]["gradient_norm"]
    assert found == pytest.approx(plain[OFF][0] / 2, rel=TOLERANCE)
    assert found != pytest.approx(plain[OFF][0], rel=TOLERANCE)
