"""The same replies for 1, 2 and 3 real ranks and batches of 1, 4 and 16 questions (float32, the shipped tiny
LVLM), and a near tie that batching must not decide.

Run as a script under torchrun, this file is a rank.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT

from plast_train.config import EvaluateConfig, ModelConfig
from plast_train.evaluation.answering import NEAR_TIE, answer_benchmarks
from plast_train.evaluation.predictions import key_of, read_parts
from plast_train.lvlm.loading import describe_base, load_lvlm, resolve_base
from plast_train.runtime.distributed import end_ranks, start_ranks
from plast_train.tasks.registry import read_benchmarks

# Real launches for every number of ranks and batch size: minutes.
pytestmark = pytest.mark.slow

WORLDS, BATCH_SIZES = (1, 2, 3), (1, 4, 16)
LANGUAGES = ("en", "ar")


@pytest.fixture(scope="module")
def answers(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], dict[Any, Any]]:
    """(ranks, batch size) → records by key. Multiple choice, open questions with and without an image."""
    folder = tmp_path_factory.mktemp("ranks")
    lines = (shared / "data" / "image_questions.jsonl").read_text(encoding="utf-8").splitlines()
    with (folder / "open.jsonl").open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines[::2]):
            record = json.loads(line)
            questions = {language: record["questions"][language] for language in LANGUAGES}
            image = record["image"] if number % 3 else None
            entry = {"id": record["id"], "image": image, "questions": questions, "answer": "red"}
            file.write(json.dumps(entry) + "\n")
    for world in WORLDS:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        out = folder / str(world)
        arguments = [__file__, str(folder / "open.jsonl"), str(shared), str(out)]
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:] + "".join(
            path.read_text()[-2000:] for path in out.glob("logs/*.log")
        )
    return {
        (world, size): {key_of(record): record for record in read_parts(folder / str(world) / str(size))}
        for world, size in product(WORLDS, BATCH_SIZES)
    }


def best(record: dict[str, Any]) -> str | None:
    logits = record["option_logits"]
    return None if logits is None else max(sorted(logits), key=logits.__getitem__)


def test_replies_do_not_depend_on_ranks_and_batch_size(answers: dict[Any, dict[Any, Any]]) -> None:
    expected = answers[1, 1]
    assert len(expected) == 36
    assert len({record["prediction"] for record in expected.values()}) > 8
    assert max(len(record["prediction"]) for record in expected.values()) > 5
    moved = 0.0
    for asked, found in answers.items():
        assert found.keys() == expected.keys(), asked
        for key, record in found.items():
            other = expected[key]
            assert {**record, "option_logits": best(record)} == {**other, "option_logits": best(other)}, asked
            if record["option_logits"]:
                gaps = [abs(record["option_logits"][x] - other["option_logits"][x]) for x in other["options"]]
                moved = max(moved, *gaps)
    assert moved < NEAR_TIE / 4  # what makes the promise hold: batching moves logits by far less


def test_the_same_batches_give_the_same_logits_on_any_ranks(answers: dict[Any, dict[Any, Any]]) -> None:
    for size in BATCH_SIZES:
        assert answers[1, size] == answers[2, size] == answers[3, size]


def main(open_questions: Path, shared: Path, out: Path) -> None:
    ranks = start_ranks(out / "logs")
    config = ModelConfig(path="tiny", dtype="float32")
    lvlm = load_lvlm(describe_base(resolve_base(config)), config, torch.device("cpu"), None)
    folder = shared / "data" / "benchmarks"
    tables = [folder / f"mmmb_style_{language}.tsv" for language in LANGUAGES]
    benchmarks = read_benchmarks([*tables, open_questions], shared / "data")
    for size in BATCH_SIZES:
        answer_benchmarks(
            lvlm,
            benchmarks,
            EvaluateConfig(batch_size=size, max_new_tokens=8),
            name="tiny",
            weights="",
            parts=out / str(size),
            ranks=ranks,
            synced=False,
        )


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except BaseException:
        import traceback

        traceback.print_exc()
        end_ranks(1)
    end_ranks(0)
