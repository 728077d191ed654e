"""The stage `collect`: run the probe through the base and count which neurons fire, for every language.

Rows are sharded; each rank keeps its own tables and there is one reduction at the end. Now and then
a rank publishes what it has counted as a part, so that a killed run resumes from there on any number of
ranks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from plast_train.context import Context
from plast_train.data.packing import shard_rows
from plast_train.data.sampling import probe_records
from plast_train.data.token_tree import TokenTree
from plast_train.errors import Interrupted, UserError
from plast_train.neurons.counts import ActivationCounts
from plast_train.neurons.probing import counting, empty_counts, probe_rows
from plast_train.run_folder import publish_bytes
from plast_train.runtime.distributed import Ranks
from plast_train.runtime.late_files import FileWait
from plast_train.stages import inputs_of, settings_of

log = logging.getLogger(__name__)


def collect(context: Context) -> list[Path]:
    """Writes `activations/statistics.safetensors` and returns it as the stage's output.

    Raises:
        UserError: a part cannot be written, or a machine does not see one.
        Interrupted: a stop signal came; what was counted is kept as parts.
    """
    config, run, ranks = context.config, context.run, context.ranks
    languages = config.data.languages
    numbers = probe_records(context.records, languages, config.probe.records, config.seed)
    rows = probe_rows(context.prompter, context.records, numbers, config.probe.tokens_per_row)
    parts = _Parts(run.activation_parts, _identity(context), ranks.rank, ranks.world)
    counts = empty_counts(context.lvlm, len(numbers), len(languages), ranks.device)
    published = _found_parts(parts, ranks)
    done = {row for numbers_of_rows in published.values() for row in numbers_of_rows}
    _count_rows(context, numbers, rows, counts, parts, done)
    for newer in ranks.gather(parts.published):
        published |= newer
    counted = [row for own in [*published.values(), *ranks.gather(parts.rows)] for row in own]
    if sorted(counted) != list(range(len(rows))):
        raise RuntimeError(f"collect: {len(counted)} rows were counted instead of {len(rows)}, or some twice")
    parts.add_to(counts, sorted(published))
    totals = {name: ranks.sum(table) for name, table in counts.state_dict().items()}
    if ranks.is_first:
        totals["record_index"] = torch.tensor(numbers, dtype=torch.int64)
        publish_bytes(run.statistics, save({k: v.cpu().contiguous() for k, v in sorted(totals.items())}))
        parts.remove()
    ranks.barrier()  # the other ranks' machines may look for the file from here on
    return [run.statistics]


def _found_parts(parts: _Parts, ranks: Ranks) -> dict[str, list[int]]:
    """The parts of an earlier launch with their rows, as rank 0 finds them once it sees all that any rank
    sees."""
    names = sorted({name for seen in ranks.gather(parts.names()) for name in seen})
    found: dict[str, list[int]] = ranks.on_first(lambda: parts.rows_of(names))
    return found


def _count_rows(
    context: Context,
    numbers: Sequence[int],
    rows: Sequence[Sequence[TokenTree]],
    counts: ActivationCounts,
    parts: _Parts,
    done: set[int],
) -> None:
    """Runs this rank's share of the rows that are not done through the model."""
    ranks = context.ranks
    english = context.config.data.languages.index("en")
    todo = [row for number, row in enumerate(rows) if number not in done]
    names = [number for number in range(len(rows)) if number not in done]
    records_done = len(numbers) - sum(len(row) for row in todo)
    progress = ranks.progress("collect", len(numbers), "records", records_done)
    with counting(context.lvlm, counts, numbers, english, context.deepspeed) as count, progress:
        for rank_row in shard_rows(todo, ranks.rank, ranks.world):
            count(rank_row)
            if rank_row.counts:
                parts.rows.append(names[rank_row.number])
            progress.add(min(ranks.world * len(rank_row.trees), len(numbers) - progress.done))
            stop = ranks.should_stop()
            if stop or ranks.broadcast(parts.age() > 60 * context.config.checkpoint.every_minutes):
                parts.publish(counts)
            if stop:
                # torchrun kills the others soon after the first rank ends; they may still be writing.
                ranks.barrier()
                raise Interrupted(
                    f"collect: stopped by a signal after {progress.done} of {len(numbers)} records"
                )


def _identity(context: Context) -> str:
    """What parts must agree on to be added up."""
    inputs = inputs_of("collect", context.config, context.run, context.base)
    settings = settings_of("collect", context.config)
    return hashlib.sha256(json.dumps([settings, inputs], sort_keys=True).encode()).hexdigest()


class _Parts:
    """The published parts of an unfinished collection. A part is a rank's tables since its previous part,
    with the numbers of the rows they were counted over."""

    def __init__(self, folder: Path, identity: str, rank: int, world: int) -> None:
        self.folder, self.identity, self.rank, self.world = folder, identity, rank, world
        self.rows: list[int] = []
        self.published: dict[str, list[int]] = {}
        self._published_at = time.monotonic()

    def age(self) -> float:
        """Seconds since the last part."""
        return time.monotonic() - self._published_at

    def names(self) -> list[str]:
        return [path.name for path in self.folder.glob("*.safetensors")]

    def rows_of(self, names: Sequence[str]) -> dict[str, list[int]]:
        """The rows of each of these parts; one of another collection or an unreadable one is removed.

        Raises:
            UserError: a part that another machine sees does not come.
        """
        found = {}
        for path in self._seen(names):
            try:
                with safe_open(path, "pt") as part:
                    ours = part.metadata()["identity"] == self.identity
                    rows = part.get_tensor("rows").tolist()
            except SafetensorError as error:
                log.warning("%s: unreadable (%s); its rows are counted again", path, error)
                ours = False
            if ours:
                found[path.name] = rows
            else:
                path.unlink()
        return found

    def publish(self, counts: ActivationCounts) -> None:
        """Writes what was counted since the last part and empties the tables."""
        self._published_at = time.monotonic()
        if not self.rows:
            return
        tables = {name: table.cpu().contiguous() for name, table in counts.state_dict().items()}
        tables["rows"] = torch.tensor(self.rows, dtype=torch.int64)
        path = self.folder / f"rows-from-{self.rows[0]:06d}.safetensors"
        try:
            publish_bytes(path, save(tables, metadata={"identity": self.identity}))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; fix this and run the same command again") from None
        for table in counts.state_dict().values():
            table.zero_()
        self.published[path.name] = self.rows
        self.rows = []

    def add_to(self, counts: ActivationCounts, names: Sequence[str]) -> None:
        """Adds this rank's share of the parts.

        Raises:
            UserError: one that another rank has published does not come.
        """
        for path in self._seen(names[self.rank :: self.world]):
            counts.add(load_file(path))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # also what a kill left of a part

    def _seen(self, names: Sequence[str]) -> Iterator[Path]:
        """The parts once they are there: a shared file system may show them late. They are never torn."""
        file_wait = FileWait(log.warning)
        for path in (self.folder / name for name in names):
            if not file_wait.until(path.is_file, path):
                raise UserError(
                    f"{path} is not to be seen on this machine: do all machines share this folder?"
                )
            yield path
