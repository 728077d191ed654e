"""Evaluating: replies and option logits against one question at a time, resuming, ranks, ZeRO-3.

Run as a script under torchrun (see `test_partitioned_weights_on_two_ranks`), this file is a rank.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.paths import ROOT
from transformers import AutoProcessor

from plast_train.config import EvaluateConfig, ModelConfig
from plast_train.errors import Interrupted, UserError
from plast_train.evaluation.answering import answer_benchmarks
from plast_train.evaluation.predictions import key_of, publish_results, read_parts
from plast_train.lvlm.forward import forward_ready
from plast_train.lvlm.loading import Lvlm, describe_base, load_lvlm
from plast_train.runtime.distributed import Ranks, end_ranks, start_ranks
from plast_train.runtime.watchdog import Watchdog
from plast_train.scoring.questions import (
    check_prompts,
    letter_tokens,
    model_inputs,
    plan_batches,
    questions_of,
)
from plast_train.tasks.benchmark import Benchmark
from plast_train.tasks.matching import match_reply
from plast_train.tasks.registry import read_benchmark
from plast_train.tiny.architecture import TinySizes
from plast_train.tiny.base import make_tiny

BATCH_SIZE = 4
NEW_TOKENS = 5
SIZES = TinySizes(width=64, heads=4, layers=2, vision_layers=2, ffn_width=96)
ZERO3 = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
FILES = ("mmbench_style_ar.tsv", "mmmb_style_cn.tsv", "mmmb_style_en.tsv")
CONFIG = EvaluateConfig(batch_size=BATCH_SIZE, max_new_tokens=NEW_TOKENS)


def load(folder: Path, zero3: dict[str, Any] | None = None) -> Lvlm:
    config = ModelConfig(path=str(folder), dtype="float32")
    return load_lvlm(describe_base(folder), config, torch.device("cpu"), zero3)


def read_benchmarks(shared: Path) -> list[Benchmark]:
    return [read_benchmark(shared / "data" / "benchmarks" / name) for name in FILES]


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LVLM with random weights that ends every reply of the first batch at its second token, and so
    some of other batches."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder, tokenizer=shared / "data" / "tokenizer", random_weights=True, sizes=SIZES)
    # Fresh logits are all but equal, so that nearly every question would be asked once more, alone.
    weights = load_file(folder / "model.safetensors")
    weights["language_model.lm_head.weight"] *= 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    lvlm = load(folder)
    questions = questions_of(read_benchmarks(shared), lvlm.family.chat)
    first = plan_batches(questions, lvlm.prompter([]), BATCH_SIZE)[0]
    ends = {reference(lvlm, question)[1][1] for question in first}
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, *sorted(ends)]}))
    return folder


@pytest.fixture(scope="module")
def lvlm(folder: Path) -> Lvlm:
    return load(folder)


@pytest.fixture(scope="module")
def benchmarks(shared: Path) -> list[Benchmark]:
    return read_benchmarks(shared)


@dataclass(frozen=True)
class OneOfSeveral(Ranks):
    """A rank whose collectives answer as if the others, which do not run, had come and agreed."""

    batches: int = 10**6  # answered before the stop signal
    first: tuple[Any, ...] = ()  # what rank 0 would broadcast

    def barrier(self) -> None:
        pass

    def broadcast(self, value: Any) -> Any:
        return self.first[0] if self.first else value

    def should_stop(self) -> bool:
        object.__setattr__(self, "batches", self.batches - 1)
        return self.batches < 0


def one_of(rank: int = 0, world: int = 1, **fields: Any) -> OneOfSeveral:
    logs = Path("logs")  # nothing is written there
    return OneOfSeveral(rank, world, torch.device("cpu"), io.StringIO(), logs, Watchdog(logs, rank), **fields)


def answer(
    lvlm: Lvlm,
    benchmarks: list[Benchmark],
    parts: Path,
    ranks: Ranks,
    weights: str = "random",
    **fields: Any,
) -> dict[Any, dict[str, Any]]:
    settings = {"name": "base", "synced": False, **fields}
    answer_benchmarks(lvlm, benchmarks, CONFIG, weights=weights, parts=parts, ranks=ranks, **settings)
    return by_key(parts)


def by_key(parts: Path) -> dict[Any, dict[str, Any]]:
    records = read_parts(parts)
    found = {key_of(record): record for record in records}
    assert len(found) == len(records), "a question was answered twice"
    return found


@cache
def processor_of(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def reference(lvlm: Lvlm, question: Any) -> tuple[torch.Tensor, list[int]]:
    """The next-token logits after the prompt and the greedy tokens, without batch, padding, cache and
    `generate`, from the inputs of transformers' own processor."""
    inputs = processor_of(lvlm.path)(text=question.prompt, images=question.item.image, return_tensors="pt")
    ids, tokens, first = inputs["input_ids"], [], None
    for _ in range(NEW_TOKENS):
        logits = lvlm.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
        first = logits if first is None else first
        tokens.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor([[tokens[-1]]])], dim=1)
    assert first is not None
    return first, tokens


@pytest.fixture(scope="module")
def answers(
    lvlm: Lvlm, benchmarks: list[Benchmark], tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, dict[str, Any]]:
    return answer(lvlm, benchmarks, tmp_path_factory.mktemp("whole") / "base", one_of())


def test_inputs_are_the_processors_own(lvlm: Lvlm, benchmarks: list[Benchmark]) -> None:
    batch = questions_of(benchmarks, lvlm.family.chat)[::9]
    own = processor_of(lvlm.path)(
        text=[question.prompt for question in batch],
        images=[question.item.image for question in batch],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    inputs = model_inputs(lvlm, lvlm.prompter([]), batch)
    assert (inputs["attention_mask"] == 0).any(), "prompts of one length cannot show the padding"
    for name, tensor in inputs.items():
        assert torch.equal(tensor, own[name]), name


def test_answers_are_those_of_one_question_at_a_time(
    lvlm: Lvlm, benchmarks: list[Benchmark], answers: dict[Any, dict[str, Any]]
) -> None:
    questions = questions_of(benchmarks, lvlm.family.chat)
    assert set(answers) == {question.key for question in questions}
    for question in questions[::3]:
        record = answers[question.key]
        logits, tokens = reference(lvlm, question)
        for letter, value in record["option_logits"].items():
            token = lvlm.tokenizer(f"ASSISTANT: {letter}").input_ids[-1]
            assert value == pytest.approx(logits[token].item(), rel=2e-6, abs=1e-5)  # rounding of float32
        # The ending tokens added for these tests are no special ones, so a reply keeps them.
        reply = lvlm.tokenizer.decode(tokens[: steps(lvlm, tokens)], skip_special_tokens=True).strip()
        assert record["prediction"] == reply
        assert list(record["option_logits"]) == list(question.item.options)
        assert record["answer"] == question.item.answer
        assert record["matched"]["parrot2024"] == match_reply(reply, question.item.options)


def steps(lvlm: Lvlm, tokens: list[int]) -> int:
    """How many steps of generation a reply takes, its ending token included."""
    ends = lvlm.model.generation_config.eos_token_id  # type: ignore[union-attr]
    return next((i for i, token in enumerate(tokens, 1) if token in ends), NEW_TOKENS)


def test_batches_are_of_like_length_longest_first(lvlm: Lvlm, benchmarks: list[Benchmark]) -> None:
    questions = questions_of(benchmarks, lvlm.family.chat)
    batches = plan_batches(questions, lvlm.prompter([]), 8)
    lengths = [[len(lvlm.tokenizer(question.prompt).input_ids) for question in batch] for batch in batches]
    assert sorted(len(batch) for batch in batches) == [1, 4, 4, *[8] * 7]  # of 41, 12 and 12 questions
    assert all(len({question.benchmark.path for question in batch}) == 1 for batch in batches)
    assert all(sorted(batch, reverse=True) == batch for batch in lengths)
    first = [batch[0] for batch in lengths]
    assert sorted(first, reverse=True) == first
    alone = plan_batches(questions_of(benchmarks[:1], lvlm.family.chat), lvlm.prompter([]), 8)
    assert [b for b in batches if b[0].benchmark is benchmarks[0]] == alone  # whatever is evaluated beside it


def test_goes_on_after_a_kill_on_other_ranks(
    lvlm: Lvlm, benchmarks: list[Benchmark], answers: dict[Any, dict[str, Any]], tmp_path: Path
) -> None:
    parts = tmp_path / "base"
    with pytest.raises(Interrupted, match="12 of 65 questions answered"):
        answer(lvlm, benchmarks, parts, one_of(batches=3))
    before = by_key(parts)
    assert len(before) == 12
    part = parts / "rank-0.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole + whole[:100])  # killed while writing
    first = (set(before),)  # what rank 0 finds before any rank writes
    for rank in range(2):
        answer(lvlm, benchmarks, parts, one_of(rank, 2, first=() if rank == 0 else first))
    found = by_key(parts)
    assert found == answers  # batches are what they were, so the logits are equal to the last bit
    assert all(found[key] == before[key] for key in before)
    assert len(read_lines(parts / "rank-0.jsonl")) > 12
    assert 20 < len(read_lines(parts / "rank-1.jsonl")) < 32


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_batch_of_which_a_part_was_answered_adds_only_the_rest(
    lvlm: Lvlm, benchmarks: list[Benchmark], answers: dict[Any, dict[str, Any]], tmp_path: Path
) -> None:
    parts = tmp_path / "base"
    with pytest.raises(Interrupted):
        answer(lvlm, benchmarks, parts, one_of(batches=1))
    part = parts / "rank-0.jsonl"
    lines = part.read_bytes().split(b"\n")
    part.write_bytes(b"\n".join(lines[:2]) + b"\n" + lines[2][:50])
    assert answer(lvlm, benchmarks, parts, one_of()) == answers


def test_answers_of_other_settings_are_not_kept(
    lvlm: Lvlm, benchmarks: list[Benchmark], answers: dict[Any, dict[str, Any]], tmp_path: Path
) -> None:
    parts = tmp_path / "base"
    with pytest.raises(Interrupted):
        answer(lvlm, benchmarks, parts, one_of(batches=3), weights="others")
    with pytest.raises(Interrupted, match="0 of 65"):
        answer(lvlm, benchmarks, parts, one_of(batches=0))
    assert by_key(parts) == {}


def test_a_broken_line_is_named(lvlm: Lvlm, benchmarks: list[Benchmark], tmp_path: Path) -> None:
    parts = tmp_path / "base"
    with pytest.raises(Interrupted):
        answer(lvlm, benchmarks, parts, one_of(batches=1))
    part = parts / "rank-0.jsonl"
    part.write_bytes(part.read_bytes().replace(b"{", b"", 1))
    with pytest.raises(UserError, match=r"rank-0.jsonl:1: not JSON .*; remove the line"):
        answer(lvlm, benchmarks, parts, one_of())


def test_unsound_weights_end_the_evaluation(
    folder: Path, benchmarks: list[Benchmark], tmp_path: Path
) -> None:
    broken = load(folder)
    broken.model.get_submodule("lm_head").weight.data[0] = float("nan")  # type: ignore[union-attr,index]
    broken.model.get_submodule("model.language_model.norm").weight.data[0] = float("inf")  # type: ignore[union-attr,index]
    with pytest.raises(FloatingPointError, match="option logits"):
        answer(broken, benchmarks, tmp_path / "base", one_of())


def test_published_files(
    lvlm: Lvlm, benchmarks: list[Benchmark], answers: dict[Any, dict[str, Any]], tmp_path: Path
) -> None:
    stale = tmp_path / "predictions" / "old.en.jsonl"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    for model in ("base", "plast"):
        answer(lvlm, benchmarks, tmp_path / "parts" / model, one_of(), name=model)
    table = publish_results(tmp_path, benchmarks, ["base", "plast"])
    assert json.loads((tmp_path / "results.json").read_text()) == table
    names = ["mmbench_style.ar.jsonl", "mmmb_style.en.jsonl", "mmmb_style.zh.jsonl"]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == names
    lines = [json.loads(line) for line in read_lines(tmp_path / "predictions" / names[0])]
    assert [(line["model"], line["index"]) for line in lines] == [
        (model, item.index) for model in ("base", "plast") for item in benchmarks[0].items
    ]
    assert lines[0] == answers[key_of(lines[0])]
    cell = table["mmbench_style"]["ar"]
    assert (cell["n"], cell["base"]["circular"]["n"]) == (41, 12)
    assert cell["base"] == cell["plast"]
    first = [
        line
        for line in lines[:41]
        if max(line["option_logits"], key=line["option_logits"].get) == line["answer"]
    ]
    assert cell["base"]["option_logits"] == len(first) / 41


def test_results_need_every_answer(lvlm: Lvlm, benchmarks: list[Benchmark], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        answer(lvlm, benchmarks, tmp_path / "parts" / "base", one_of(batches=3))
    with pytest.raises(RuntimeError, match="were not answered"):
        publish_results(tmp_path, benchmarks, ["base"])
    assert not (tmp_path / "results.json").exists()


def test_without_benchmarks_the_results_are_empty(lvlm: Lvlm, tmp_path: Path) -> None:
    assert answer(lvlm, [], tmp_path / "parts" / "base", one_of()) == {}
    assert publish_results(tmp_path, [], ["base"]) == {}
    assert (tmp_path / "predictions").is_dir()


def test_letters_are_the_tokens_of_replies(lvlm: Lvlm, benchmarks: list[Benchmark]) -> None:
    prompter = lvlm.prompter([])
    questions = questions_of(benchmarks, prompter.chat)
    tokens = lvlm.tokenizer.convert_ids_to_tokens(list(letter_tokens(prompter, questions).values()))
    assert tokens == ["▁A", "▁B", "▁C", "▁D"]


class Characters:
    """A tokenizer that makes one token of each character, but reads the two last as one where it is told."""

    def __init__(self, merges: str) -> None:
        self.merges = merges

    def __call__(self, text: str) -> Any:
        text = text.removesuffix("</s>")
        cut = len(text) - 2 if text.endswith(self.merges) else len(text)
        ids = [ord(character) for character in text[:cut]] + [hash(text[cut:])] * (cut < len(text))
        return type("Encoding", (), {"input_ids": ids})

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [str(number) for number in ids]


def test_letters_without_a_token_of_their_own(lvlm: Lvlm, benchmarks: list[Benchmark]) -> None:
    questions = questions_of(benchmarks, lvlm.family.chat)
    prompter = replace(lvlm.prompter([]), tokenizer=Characters("no merge"))  # all begin with the space
    with pytest.raises(UserError, match="option letter B: the tokenizer gives it no token of its own"):
        letter_tokens(prompter, questions)
    prompter = replace(prompter, chat=replace(prompter.chat, end=""), tokenizer=Characters("no merge"))
    joined = replace(prompter, tokenizer=Characters(":"))  # the prompt's end is read with what follows
    with pytest.raises(UserError, match="option letter A: the tokenizer gives it no token of its own"):
        letter_tokens(joined, questions)


def test_prompts_are_checked_before_ranks_start(lvlm: Lvlm, benchmarks: list[Benchmark]) -> None:
    prompter = lvlm.prompter([])
    check_prompts(benchmarks, prompter, 2048, 16)
    questions = questions_of(benchmarks, prompter.chat)
    longest = max(int(model_inputs(lvlm, prompter, [q])["input_ids"].shape[1]) for q in questions)
    check_prompts(benchmarks, prompter, longest + 16, 16)
    with pytest.raises(UserError, match=rf"index \d+: {longest} tokens of prompt and 17 of reply exceed"):
        check_prompts(benchmarks, prompter, longest + 16, 17)
    item = replace(benchmarks[0].items[3], hint="<image>")
    with pytest.raises(UserError, match=rf"index {item.index}: the text contains '<image>'; remove it"):
        check_prompts([replace(benchmarks[0], items=[item])], prompter, 2048, 16)


@pytest.mark.slow
def test_partitioned_weights_on_two_ranks(
    folder: Path,
    lvlm: Lvlm,
    benchmarks: list[Benchmark],
    shared: Path,
    answers: dict[Any, dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Real ranks, weights spread over both (ZeRO-3), which share every step: they must not fall apart where
    one has fewer batches or its replies end earlier."""
    batches = plan_batches(questions_of(benchmarks, lvlm.family.chat), lvlm.prompter([]), BATCH_SIZE)
    ends = [max(steps(lvlm, reference(lvlm, question)[1]) for question in batch) for batch in batches[:2]]
    assert len(batches) % 2 == 1 and ends[0] < ends[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [__file__, str(folder), str(shared), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    output = tmp_path / "torchrun.log"
    with output.open("wb") as file:
        torchrun = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = torchrun.wait(timeout=300)
        finally:
            torchrun.terminate()  # torchrun then ends ranks that wait for each other
            torchrun.wait()
    assert code == 0, "".join(path.read_text()[-3000:] for path in [output, *tmp_path.glob("logs/*.log")])
    found = by_key(tmp_path / "base")
    lines = [len(read_lines(part)) for part in (tmp_path / "base").glob("rank-*.jsonl")]
    assert len(lines) == 2 and min(lines) > 28
    assert set(found) == set(answers)
    for key, record in found.items():
        expected = answers[key]
        assert record["prediction"] == expected["prediction"]
        assert record["option_logits"] == pytest.approx(expected["option_logits"], abs=1e-5)


def main(folder: Path, shared: Path, out: Path) -> None:
    ranks = start_ranks(out / "logs")
    lvlm = load(folder, ZERO3)
    benchmarks = read_benchmarks(shared)
    assert all(weight.numel() == 0 for weight in lvlm.model.parameters()), "weights are not partitioned"
    with forward_ready(lvlm.model, ZERO3):
        answer_benchmarks(
            lvlm,
            benchmarks,
            CONFIG,
            name="base",
            weights="random",
            parts=out / "base",
            ranks=ranks,
            synced=True,
        )


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except BaseException:
        import traceback

        traceback.print_exc()
        end_ranks(1)
    end_ranks(0)
