"""The training loop in one process, with an engine of plain torch that divides as DeepSpeed does: gradients,
losses, learning rates and resuming against torch alone. Real ranks train in tests/distributed/training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.training_runs import LANGUAGES, make_base, make_config, make_run

from plast_train.config import Config, ModelConfig
from plast_train.data.images import load_image
from plast_train.data.questions import Record
from plast_train.data.sampling import TrainingPlan, plan_training
from plast_train.data.token_tree import TokenSequence
from plast_train.lvlm.freezing import freeze_all_but, trainable_parameters
from plast_train.lvlm.loading import Lvlm, describe_base, load_lvlm
from plast_train.run_folder import RunFolder
from plast_train.training import loop
from plast_train.training.flops import shape_of
from plast_train.training.losses import Validation

STEPS = 3
LAYERS = [0, 1]
WORLDS = [1, 2, 3]
# A row of 200 tokens holds one sequence, so a step has 5 rows: on 2 and 3 ranks some do not count.
CONFIG = make_config(
    global_batch=5,
    tokens_per_row=200,
    max_steps=STEPS,
    warmup_fraction=0.5,
    validate_every=2,
    learning_rate=1e-3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    make_run(folder / "run", make_base(folder), CONFIG)
    return folder


@pytest.fixture
def lvlm(folder: Path) -> Lvlm:
    base = folder / "base"
    loaded = load_lvlm(
        describe_base(base), ModelConfig(path=str(base), dtype="float32"), torch.device("cpu"), None
    )
    freeze_all_but(loaded.model, trainable_parameters(loaded.model, loaded.family, LAYERS, "all"))
    return loaded


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    lines = (folder / "run" / "records.jsonl").read_text().splitlines()
    return [Record(**json.loads(line)) for line in lines]


def plan_of(lvlm: Lvlm, records: list[Record]) -> TrainingPlan:
    train = CONFIG.train
    samples = list(lvlm.prompter(LANGUAGES).translations(records, range(len(records)), train))
    plan = plan_training(samples, train.global_batch, train.tokens_per_row, 0, 1.0, STEPS)
    assert plan.rows_per_step == 5
    return plan


def trained_of(lvlm: Lvlm) -> dict[str, Any]:
    return {name: p for name, p in lvlm.model.named_parameters() if p.requires_grad}


class PlainEngine:
    """Divides a loss by the number of micro-steps and gradients by the number of ranks, as DeepSpeed does."""

    def __init__(self, lvlm: Lvlm, world: int, micro_steps: int, config: Config) -> None:
        self.model, self.world, self.micro_steps = lvlm.model, world, micro_steps
        self.parameters = list(trained_of(lvlm).values())
        train = config.train
        # The rate is wrong until the loop sets it.
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1.0, betas=train.betas, weight_decay=train.weight_decay
        )
        self.clipping, self.norm, self.calls = train.gradient_clipping, float("nan"), 0

    def __call__(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.micro_steps / self.world).backward()

    def step(self) -> None:
        self.calls += 1
        if self.calls % self.micro_steps == 0:
            self.norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.clipping))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> float:
        return self.norm

    def was_step_applied(self) -> bool:
        return True


def one_rank(rank: int, world: int, sums: list[torch.Tensor] | None = None) -> Any:
    """A rank whose sums over all ranks are `world` times its own, as if the others had the same."""

    def total(tensor: torch.Tensor) -> torch.Tensor:
        if sums is not None:
            sums.append(tensor.clone())
        return tensor * world

    return SimpleNamespace(
        rank=rank, world=world, is_first=rank == 0, device=torch.device("cpu"), sum=total,
        gather=lambda value: [value], alive=lambda: None, should_stop=lambda: False, say=print,
        progress=lambda *_, **__: nullcontext(SimpleNamespace(add=lambda *_: None)),
    )  # fmt: skip


def training_of(
    lvlm: Lvlm, records: list[Record], run: Path, rank: int = 0, world: int = 1, engine: Any = None
) -> Any:
    plan, ranks = plan_of(lvlm, records), one_rank(rank, world)
    saved: list[int] = []
    return SimpleNamespace(
        config=CONFIG, run=RunFolder(run), ranks=ranks, lvlm=lvlm, records=records, plan=plan,
        validation=SimpleNamespace(losses=lambda: {"de": 1.0}), trained=trained_of(lvlm),
        engine=engine or PlainEngine(lvlm, world, -(-plan.rows_per_step // world), CONFIG),
        identity=SimpleNamespace(layers=LAYERS, modules="all"), shape=shape_of(lvlm.config),
        saver=SimpleNamespace(
            failed=False, last=None, save=lambda _e, _t, step: saved.append(step),
            wait=lambda: None, close=lambda: None,
        ),
        saved=saved,
    )  # fmt: skip


def plain_loss(lvlm: Lvlm, sequence: TokenSequence) -> torch.Tensor:
    """Summed over the labels, one sequence at a time, all logits."""
    pixels = lvlm.pixel_values([load_image(sequence.image)]) if sequence.image else None
    ids = torch.tensor([sequence.tokens])
    model: Any = lvlm.model
    logits = model(input_ids=ids, pixel_values=pixels).logits[0, -sequence.labels - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, -sequence.labels :], reduction="sum")


def sequences_of(step: Any) -> Iterator[TokenSequence]:
    return (s for trees in step.rows for tree in trees for s in tree.sequences)


@pytest.mark.parametrize("world", WORLDS)
def test_gradient_and_loss_are_those_of_the_mean_over_labels(
    lvlm: Lvlm, records: list[Record], folder: Path, world: int
) -> None:
    losses = []
    for rank in range(world):
        training = training_of(lvlm, records, folder / "run", rank, world)
        batch = next(loop.batches(training.plan.steps, lvlm, training.ranks))
        losses.append(loop._forward_backward(training, 1, batch))
    trained = trained_of(lvlm)
    found = {name: p.grad.clone() for name, p in trained.items()}
    step = training.plan.steps[0]
    for parameter in trained.values():
        parameter.grad = None
    loss = sum(plain_loss(lvlm, sequence) for sequence in sequences_of(step)) / step.labels
    loss.backward()
    assert sum(losses) / world == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in trained.items():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-7), name


def plain_training(lvlm: Lvlm, plan: TrainingPlan) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the same steps by torch alone; the model is trained."""
    train, trained = CONFIG.train, trained_of(lvlm)
    rates = [5e-4, 1e-3, 1e-3]  # two steps of warm-up, then the cosine begins
    optimizer = torch.optim.AdamW(trained.values(), betas=train.betas, weight_decay=train.weight_decay)
    losses, norms = [], []
    for rate, step in zip(rates, plan.steps, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = sum(plain_loss(lvlm, sequence) for sequence in sequences_of(step)) / step.labels
        loss.backward()
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(trained.values()), train.gradient_clipping)))
        optimizer.step()
    return losses, norms


def test_the_loop_trains_as_torch_does_and_resumes_at_its_step(
    folder: Path, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "require_gradients", lambda training, steps: None)
    config = ModelConfig(path=str(folder / "base"), dtype="float32")
    models = []
    for _ in range(2):
        made = load_lvlm(describe_base(folder / "base"), config, torch.device("cpu"), None)
        freeze_all_but(made.model, trainable_parameters(made.model, made.family, LAYERS, "all"))
        models.append(made)
    ours, plain = models
    losses, norms = plain_training(plain, plan_of(plain, records))

    # The first two steps; then a line of a third one that was not saved, and half a line.
    whole = training_of(ours, records, tmp_path)
    first = SimpleNamespace(**vars(whole) | {"plan": TrainingPlan(whole.plan.steps[:2], 5)})
    monkeypatch.setattr(loop, "learning_rate", lambda step, total, train: [5e-4, 1e-3, 1e-3][step])
    loop.run_loop(first, 0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": -1.0}) + '\n{"step": 4, "lo')
    loop.run_loop(whole, 2)

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-3)
    assert [line["learning_rate"] for line in lines] == [5e-4, 1e-3, 1e-3]
    assert ["validation_loss" in line for line in lines] == [False, True, True]
    assert whole.saved == [2, 3]
    expected = dict(plain.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-5), name


@pytest.mark.parametrize("world", WORLDS)
def test_validation_is_the_mean_over_each_language_s_labels(
    lvlm: Lvlm, records: list[Record], world: int
) -> None:
    numbers = [0, 1, 2, 6, 9]
    held = list(lvlm.prompter(LANGUAGES).translations(records, numbers, CONFIG.train))
    sums: list[torch.Tensor] = []
    for rank in range(world):
        Validation(held, LANGUAGES, 400, lvlm, one_rank(rank, world, sums)).losses()
    totals, counts = sum(sums).T.tolist()  # type: ignore[union-attr]
    for number, language in enumerate(LANGUAGES):
        own = [s for group in held for s in group if s.key.language == number]
        assert counts[number] == sum(s.labels for s in own)
        with torch.no_grad():
            expected = sum(float(plain_loss(lvlm, sequence)) for sequence in own)
        assert totals[number] == pytest.approx(expected, rel=1e-4), language
