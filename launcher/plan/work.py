"""How much work a run is: rows, tokens and useful FLOPs, planned as the run itself plans them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from plast_train.config import Config

if TYPE_CHECKING:
    from plast_train.data.questions import Record
    from plast_train.data.token_tree import TokenSequence, TokenTree
    from plast_train.lvlm.prompts import Prompter
    from plast_train.training.flops import ModelShape

# Records whose sequences are made; larger data is planned from a sample of this many.
SAMPLE = 300


@dataclass(frozen=True)
class Data:
    """The records and how they become tokens; `positions` is the most that the model takes, `assumptions`
    says what is not the run's own."""

    records: list[Record]
    prompter: Prompter
    positions: int
    audit: dict[str, Any] | None
    audit_lines: list[str]
    assumptions: list[str]


@dataclass(frozen=True)
class TrainingWork:
    """What training takes. Amounts are means over one step, of all ranks together; `unshared_tokens` is what
    the same samples take one sequence at a time, without shared prefixes. FLOPs are those of
    `training.flops`; `longest_row` and `most_labels` are the largest packed row's tokens and labels."""

    records: int
    validation_records: int
    steps: int
    rows: int
    samples: float
    tokens: float
    unshared_tokens: float
    labels: float
    images: float
    useful_flops: float
    recompute_flops: float
    all_layers_flops: float
    longest_row: int
    most_labels: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, the run's totals among them."""
        return asdict(self) | {
            "prefix_sharing": self.unshared_tokens / self.tokens,
            "total_samples": self.samples * self.steps,
            "total_tokens": self.tokens * self.steps,
            "total_useful_flops": self.useful_flops * self.steps,
        }


@dataclass(frozen=True)
class CollectingWork:
    """What probing the base takes, in all; as in `TrainingWork`."""

    records: int
    rows: int
    tokens: int
    unshared_tokens: int
    useful_flops: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"prefix_sharing": self.unshared_tokens / self.tokens}


def read_data(config: Config, architecture: dict[str, Any], folder: Path | None, assumed: int) -> Data:
    """The configured records, or `assumed` ordinary ones where their files are not there yet; the model's
    tokenizer, or an estimate where `folder` has none.

    Raises:
        UserError: the files are there and have defects.
    """
    from launcher.plan.estimates import EstimatingTokenizer, assumed_records
    from plast_train.data.audit import audit
    from plast_train.lvlm.architectures import has_tokenizer
    from plast_train.lvlm.families import family_of
    from plast_train.lvlm.loading import make_prompter

    languages, assumptions = config.data.languages, []
    missing = [entry for entry in config.data.questions if not _is_there(entry)]
    if folder is not None and has_tokenizer(folder):
        tokenizer = _tokenizer(folder, config.model.trust_remote_code)
    else:
        tokenizer = EstimatingTokenizer(architecture["image_token_index"])
        assumptions.append(
            "tokens of texts are estimated from their bytes: model.path has no tokenizer that can be loaded"
        )
    prompter = make_prompter(tokenizer, family_of(architecture, "config"), architecture, languages)
    positions = architecture["text_config"]["max_position_embeddings"]
    if missing:
        assumptions.append(
            f"{assumed:,} records of one ordinary question and one image each (plan.records): "
            f"{', '.join(missing)} not there"
        )
        return Data(assumed_records(assumed, languages), prompter, positions, None, [], assumptions)
    from plast_train.data.questions import read_records

    records = read_records(config.data)
    numbers = _sample(len(records), SAMPLE, config.seed)
    made = prompter.probes(records, numbers)
    found = audit(records, config.data, itertools.chain.from_iterable(made))
    return Data(records, prompter, positions, found.as_dict(), found.lines(), assumptions)


def training_work(config: Config, data: Data, shape: ModelShape, layers: Sequence[int]) -> TrainingWork:
    """Plans training over the data, or over a sample of it, and counts.

    Raises:
        UserError: more samples than `data.max_bad_fraction` allows cannot be run.
    """
    from plast_train.data.mixing import some_of_each_template
    from plast_train.data.sampling import plan_training, split_records
    from plast_train.training.flops_methods import method_flops

    train = config.train
    numbers, held_back = split_records(len(data.records), train.validation_records, config.seed)
    if config.sampling.per_template is not None:
        english = [record.questions["en"] for record in data.records]
        numbers = some_of_each_template(english, numbers, config.sampling.per_template, config.seed)
    sample = [numbers[i] for i in _sample(len(numbers), max(SAMPLE, 2 * train.global_batch), config.seed)]
    sequences = _runnable(config, data, list(data.prompter.translations(data.records, sample, train)))
    count = training_steps(config, [data.records[n] for n in numbers])
    batches = math.ceil(sum(map(len, sequences)) / train.global_batch)
    plan = plan_training(
        sequences, train.global_batch, train.tokens_per_row, config.seed, 1.0, min(count, batches)
    )
    if len(sample) == len(numbers):
        typical = list(plan.steps)
    else:  # a sample ends in batches that are not full, more often than the data do
        typical = [step for step in plan.steps if step.samples == max(s.samples for s in plan.steps)]
    steps = [(step, [tree for row in step.rows for tree in row]) for step in typical]
    rows = [row for step in typical for row in step.rows]
    everything, whole_layers = range(shape.decoder.layers), train.model_copy(update={"method": "layers"})
    return TrainingWork(
        records=len(numbers),
        validation_records=len(held_back),
        steps=count,
        rows=plan.rows_per_step,
        samples=fmean(step.samples for step, _ in steps),
        tokens=fmean(step.tokens for step, _ in steps),
        unshared_tokens=fmean(_unshared(trees) for _, trees in steps),
        labels=fmean(step.labels for step, _ in steps),
        images=fmean(_images(trees) for _, trees in steps),
        useful_flops=fmean(
            method_flops(shape, s.rows, layers, config.selection.modules, train) for s, _ in steps
        ),
        recompute_flops=fmean(_recomputed(shape, trees, layers) for _, trees in steps),
        all_layers_flops=fmean(
            method_flops(shape, s.rows, everything, "all", whole_layers) for s, _ in steps
        ),
        longest_row=max(sum(tree.tokens for tree in row) for row in rows),
        most_labels=max(sum(s.labels for tree in row for s in tree.sequences) for row in rows),
    )


def collecting_work(config: Config, data: Data, shape: ModelShape) -> CollectingWork:
    """Plans the probe as the stage `collect` does, and counts."""
    from plast_train.data.packing import fill_rows
    from plast_train.data.sampling import probe_records
    from plast_train.data.token_tree import build_tree
    from plast_train.training.flops import forward_flops, visible_pairs

    numbers = probe_records(data.records, config.data.languages, config.probe.records, config.seed)
    trees = [build_tree(group) for group in data.prompter.probes(data.records, numbers)]
    tokens = sum(tree.tokens for tree in trees)
    return CollectingWork(
        records=len(numbers),
        rows=len(fill_rows(trees, config.probe.tokens_per_row)),
        tokens=tokens,
        unshared_tokens=_unshared(trees),
        useful_flops=forward_flops(shape, tokens, visible_pairs(trees), 0, _images(trees)),
    )


def training_steps(config: Config, records: Sequence[Record]) -> int:
    """Optimizer steps of the run, as `data.sampling` plans them: batches with images and batches without."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    per_record = len(config.data.languages) - 1
    with_image = sum(r.image is not None and config.train.image_in_training for r in records)
    batches = [
        math.ceil(config.sampling.keep * n * per_record / config.train.global_batch)
        for n in (with_image, len(records) - with_image)
    ]
    return max(1, math.ceil(config.train.epochs * sum(batches)))


def _runnable(config: Config, data: Data, records: list[list[TokenSequence]]) -> list[list[TokenSequence]]:
    from plast_train.data.audit import check_sequences

    usable = check_sequences(
        records,
        data.records,
        config.data,
        section="train",
        tokens_per_row=config.train.tokens_per_row,
        max_positions=data.positions,
        image_token_id=data.prompter.image_token,
        image_tokens=data.prompter.num_image_tokens,
    )
    kept = set(usable)
    return [sequences for sequences in records if sequences[0].key.record in kept]


def _recomputed(shape: ModelShape, trees: Sequence[TokenTree], layers: Sequence[int]) -> float:
    from plast_train.training.flops import recompute_flops, visible_pairs

    return recompute_flops(shape, sum(tree.tokens for tree in trees), visible_pairs(trees), layers)


def _unshared(trees: Sequence[TokenTree]) -> int:
    return sum(s.length for tree in trees for s in tree.sequences)


def _images(trees: Sequence[TokenTree]) -> int:
    return sum(tree.image is not None for tree in trees)


def _sample(total: int, wanted: int, seed: int) -> list[int]:
    return sorted(random.Random(f"plan {seed}").sample(range(total), min(wanted, total)))


def _is_there(entry: str) -> bool:
    """Whether an entry of `data.questions` can be read without a network."""
    _, _, paired = entry.partition("=")
    return Path(paired or entry).expanduser().exists()


def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
