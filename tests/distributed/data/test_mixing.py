"""Difficulty and drawn samples on real ranks: the same for any number of them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.training_runs import LANGUAGES, losses, make_base, make_config, make_run, train_runs

from plast_train.config import Config, ModelConfig
from plast_train.data.questions import Record
from plast_train.data.sampling import split_records
from plast_train.data.token_tree import Key
from plast_train.lvlm.loading import describe_base, load_lvlm


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The hardest third with unequal shares, on one rank and on two, and once more where it was measured."""
    folder = tmp_path_factory.mktemp("mixing")
    base = make_base(folder)
    tree = make_config(max_steps=6, every_steps=3).model_dump(mode="json")
    tree["sampling"] = {
        "keep": 0.34,
        "keep_by": "hardest",
        "language_weights": {"pt": 3.0},
        "per_template": 2,
    }
    config = Config.model_validate(tree)
    one, two = (make_run(folder / name, base, config) for name in ("one", "two"))
    train_runs(1, [one])
    train_runs(2, [two])
    return SimpleNamespace(base=base, one=one, two=two, config=config)


@pytest.mark.slow
def test_samples_do_not_depend_on_the_number_of_ranks(runs: SimpleNamespace) -> None:
    digests = [
        json.loads((run / "checkpoints" / "step-00000006" / "manifest.json").read_text())["settings"]["data"]
        for run in (runs.one, runs.two)
    ]
    assert digests[0] == digests[1]
    one, two = (json.loads((run / "difficulty.json").read_text())["losses"] for run in (runs.one, runs.two))
    assert one == two  # to the last digit
    assert float((losses(runs.one) - losses(runs.two)).abs().max()) < 1e-3


@pytest.mark.slow
def test_difficulty_is_the_base_models_loss(runs: SimpleNamespace) -> None:
    lvlm = load_lvlm(
        describe_base(runs.base), ModelConfig(path=str(runs.base), dtype="float32"), torch.device("cpu"), None
    )
    lines = (Path(runs.one) / "records.jsonl").read_text().splitlines()
    all_records = [Record(**json.loads(line)) for line in lines]
    train = runs.config.train
    numbers, _ = split_records(len(all_records), train.validation_records, runs.config.seed)
    measured = json.loads((runs.one / "difficulty.json").read_text())["losses"]
    assert {record for record, _, _ in measured} <= set(numbers)
    samples = lvlm.prompter(LANGUAGES).translations(all_records, numbers, train)
    by_key = {s.key: s for record in samples for s in record if s.image is None}
    checked = [(by_key[Key(r, k)], loss) for r, k, loss in measured if Key(r, k) in by_key][:6]
    for sequence, loss in checked:
        logits = lvlm.model(input_ids=torch.tensor([sequence.tokens])).logits[0, -sequence.labels - 1 : -1]
        labels = torch.tensor(sequence.tokens[-sequence.labels :])
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)
    assert checked
