"""How much work a run is: rows, tokens and useful FLOPs, counted by the run's own planning code."""

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
    from plast_train.data.token_tree import TokenTree
    from plast_train.lvlm.prompts import Prompter
    from plast_train.training.flops import ModelShape

# Larger data is planned from a sample of this many records, as tokenizing all of them would take too long.
NUM_SAMPLED = 300


@dataclass(frozen=True)
class Data:
    """The records and how they become tokens; `max_positions` is the model's longest sequence, `assumptions`
    names what is not the run's own."""

    records: list[Record]
    prompter: Prompter
    max_positions: int
    audit: dict[str, Any] | None
    audit_lines: list[str]
    assumptions: list[str]


@dataclass(frozen=True)
class TrainingWork:
    """What training takes; field names are keys of `plast plan --json`.

    `records`, `validation_records` and `steps` are the run's numbers of these. Amounts are means over one
    step, of all ranks together; `unshared_tokens` is what the same samples take one sequence at a time,
    without shared prefixes. FLOPs are those of `training.flops`; `longest_row` and `most_labels` are the
    largest packed row's tokens and labels.
    """

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
    """What collecting the base's activations takes in all; fields as in `TrainingWork`."""

    records: int
    rows: int
    tokens: int
    unshared_tokens: int
    useful_flops: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"prefix_sharing": self.unshared_tokens / self.tokens}


def read_data(config: Config, architecture: dict[str, Any], folder: Path | None, num_assumed: int) -> Data:
    """The configured records, or `num_assumed` ordinary ones where their files do not exist yet; the model's
    tokenizer, or an estimate where `folder` has none.

    Raises:
        UserError: the files exist and have defects.
    """
    from launcher.plan.estimates import EstimatingTokenizer, assumed_records
    from plast_train.data.audit import audit
    from plast_train.data.questions import read_records
    from plast_train.lvlm.architectures import has_tokenizer
    from plast_train.lvlm.families import family_of
    from plast_train.lvlm.loading import load_tokenizer, make_prompter

    languages, assumptions = config.data.languages, []
    # An entry is a file, or `language=file` for paired ones.
    paths = {entry: entry.partition("=")[2] or entry for entry in config.data.questions}
    missing = [entry for entry, path in paths.items() if not Path(path).expanduser().exists()]
    if folder is not None and has_tokenizer(folder):
        tokenizer = load_tokenizer(folder, config.model.trust_remote_code)
    else:
        tokenizer = EstimatingTokenizer(architecture["image_token_index"])
        assumptions.append(
            "tokens of texts are estimated from their bytes: model.path has no tokenizer that can be loaded"
        )
    prompter = make_prompter(tokenizer, family_of(architecture, "config"), architecture, languages)
    max_positions = architecture["text_config"]["max_position_embeddings"]
    if missing:
        assumptions.append(
            f"{num_assumed:,} records of one ordinary question and one image each (plan.records), because "
            f"{', '.join(missing)} cannot be found"
        )
        records = assumed_records(num_assumed, languages)
        return Data(records, prompter, max_positions, None, [], assumptions)
    records = read_records(config.data)
    probes = prompter.probes(records, _sample(len(records), NUM_SAMPLED, config.seed))
    found = audit(records, config.data, itertools.chain.from_iterable(probes))
    return Data(records, prompter, max_positions, found.as_dict(), found.lines(), assumptions)


def training_work(config: Config, data: Data, shape: ModelShape, layers: Sequence[int]) -> TrainingWork:
    """Plans training over the data, or over a sample of it, and counts its work.

    Raises:
        UserError: more samples than `data.max_bad_fraction` allows cannot be run.
    """
    from plast_train.data.audit import check_sequences
    from plast_train.data.mixing import some_of_each_template
    from plast_train.data.sampling import plan_training, split_records
    from plast_train.training.flops import recompute_flops, step_flops, visible_pairs

    train = config.train
    numbers, held_back = split_records(len(data.records), train.validation_records, config.seed)
    if config.sampling.per_template is not None:
        english = [record.questions["en"] for record in data.records]
        numbers = some_of_each_template(english, numbers, config.sampling.per_template, config.seed)
    # At least two batches, of which one is full whatever the sample.
    num_sampled = max(NUM_SAMPLED, 2 * train.global_batch)
    sample = [numbers[i] for i in _sample(len(numbers), num_sampled, config.seed)]
    sequences = list(data.prompter.translations(data.records, sample, train))
    usable = set(
        check_sequences(
            sequences,
            data.records,
            config.data,
            section="train",
            tokens_per_row=train.tokens_per_row,
            max_positions=data.max_positions,
            image_token_id=data.prompter.image_token,
            image_tokens=data.prompter.num_image_tokens,
        )
    )
    sequences = [group for group in sequences if group[0].key.record in usable]
    num_steps = training_steps(config, [data.records[n] for n in numbers])
    num_batches = math.ceil(sum(map(len, sequences)) / train.global_batch)
    steps = min(num_steps, num_batches)
    plan = plan_training(sequences, train.global_batch, train.tokens_per_row, config.seed, 1.0, steps)
    if len(sample) == len(numbers):
        typical = list(plan.steps)
    else:
        # A sample ends in batches that are not full, which among the whole data's batches are rare.
        typical = [step for step in plan.steps if step.samples == max(s.samples for s in plan.steps)]
    rows = [row for step in typical for row in step.rows]
    trees_by_step = [[tree for row in step.rows for tree in row] for step in typical]
    everything, whole_layers = range(shape.decoder.num_layers), train.model_copy(update={"method": "layers"})
    return TrainingWork(
        records=len(numbers),
        validation_records=len(held_back),
        steps=num_steps,
        rows=plan.rows_per_step,
        samples=fmean(step.samples for step in typical),
        tokens=fmean(step.tokens for step in typical),
        unshared_tokens=fmean(map(_unshared, trees_by_step)),
        labels=fmean(step.labels for step in typical),
        images=fmean(map(_images, trees_by_step)),
        useful_flops=fmean(
            step_flops(shape, step.rows, layers, config.selection.modules, train) for step in typical
        ),
        recompute_flops=fmean(
            recompute_flops(shape, sum(tree.tokens for tree in trees), visible_pairs(trees), layers)
            for trees in trees_by_step
        ),
        all_layers_flops=fmean(
            step_flops(shape, step.rows, everything, "all", whole_layers) for step in typical
        ),
        longest_row=max(sum(tree.tokens for tree in row) for row in rows),
        most_labels=max(sum(s.labels for tree in row for s in tree.sequences) for row in rows),
    )


def collecting_work(config: Config, data: Data, shape: ModelShape) -> CollectingWork:
    """Plans the probe as the stage `collect` does, and counts its work."""
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
    """Number of optimizer steps, as `data.sampling` plans them: a batch has images throughout or none at all,
    so the two kinds are rounded up separately."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    num_pairs = len(config.data.languages) - 1  # of a record: English with each other language
    num_with_image = sum(r.image is not None and config.train.image_in_training for r in records)
    num_batches = [
        math.ceil(config.sampling.keep * n * num_pairs / config.train.global_batch)
        for n in (num_with_image, len(records) - num_with_image)
    ]
    return max(1, math.ceil(config.train.epochs * sum(num_batches)))


def _unshared(trees: Sequence[TokenTree]) -> int:
    return sum(s.length for tree in trees for s in tree.sequences)


def _images(trees: Sequence[TokenTree]) -> int:
    return sum(tree.image is not None for tree in trees)


def _sample(num_all: int, num_wanted: int, seed: int) -> list[int]:
    return sorted(random.Random(f"plan {seed}").sample(range(num_all), min(num_wanted, num_all)))
