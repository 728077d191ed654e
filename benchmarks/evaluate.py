"""How much faster evaluating is than `generate` one question at a time, with the same answers.

    python benchmarks/evaluate.py [--questions 60] [--batch-size 32] [--threads 1] [--rounds 3]

Lets the embedded tiny LVLM answer questions of its drawn world in seven languages, in one process: as
`plast evaluate` does, and with transformers' own processor and `generate`, one question at a time. Prints
the seconds of both and their ratio, and ends with exit code 1 if a reply differs or the ratio is below 3.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoProcessor

from launcher.checks.paths import tiny_world
from plast_train.config import ModelConfig
from plast_train.evaluation.answering import Answerer
from plast_train.lvlm.loading import Lvlm, describe_base, load_lvlm, resolve_base
from plast_train.scoring.questions import Question, letter_tokens, plan_batches, questions_of
from plast_train.tasks.benchmark import Benchmark
from plast_train.tasks.registry import read_benchmark

NEW_TOKENS = 8
GOAL = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--questions", type=int, default=60, help="in each language")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="both in turn, of which the medians count")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = ModelConfig(path="tiny", dtype="float32")
    lvlm = load_lvlm(describe_base(resolve_base(config)), config, torch.device("cpu"), None)
    questions = questions_of(benchmarks(arguments.questions), lvlm.family.chat)
    processor = AutoProcessor.from_pretrained(lvlm.path)
    in_batches(lvlm, questions[: arguments.batch_size], arguments.batch_size)  # warm-up, as below
    one_by_one(lvlm, processor, questions[:1])
    times: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        batched = in_batches(lvlm, questions, arguments.batch_size)
        middle = time.perf_counter()
        single = one_by_one(lvlm, processor, questions)
        times.append((middle - began, time.perf_counter() - middle))
    seconds, plain = (median(column) for column in zip(*times, strict=True))
    differing = sum(batched[key] != reply for key, reply in single.items())
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} thread(s)")
    print(f"{len(questions)} questions, batches of {arguments.batch_size}, {differing} replies differ")
    print(f"plast evaluate {seconds:8.2f} s\none at a time  {plain:8.2f} s")
    print(f"ratio          {plain / seconds:8.2f} x")
    return int(differing > 0 or plain / seconds < GOAL)


def benchmarks(count: int) -> list[Benchmark]:
    read = [read_benchmark(path) for path in sorted(Path(tiny_world()).glob("tiny_*.tsv"))]
    return [replace(benchmark, items=benchmark.items[:count]) for benchmark in read]


class OneRank:
    """As much of `Ranks` as answering in one process needs."""

    device = torch.device("cpu")


def in_batches(lvlm: Lvlm, questions: list[Question], size: int) -> dict[Any, str]:
    """Reply of each question by its key."""
    prompter = lvlm.prompter([])
    ranks: Any = OneRank()
    answerer = Answerer(lvlm, prompter, letter_tokens(prompter, questions), NEW_TOKENS, False, ranks)
    records = chain.from_iterable(map(answerer.records, plan_batches(questions, prompter, size)))
    return {(r["benchmark"], r["language"], r["index"]): r["prediction"] for r in records}


def one_by_one(lvlm: Lvlm, processor: Any, questions: list[Question]) -> dict[Any, str]:
    model: Any = lvlm.model
    replies = {}
    for question in questions:
        inputs = processor(text=question.prompt, images=question.item.image, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        reply = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        replies[question.key] = reply.strip()
    return replies


if __name__ == "__main__":
    sys.exit(main())
