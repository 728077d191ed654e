"""From a planned step to tensors: a rank's rows with their images, made ready while the step before runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from plast_train.data.packing import PackedRow, RankRow, shard_step
from plast_train.data.sampling import Step
from plast_train.lvlm.forward import load_row
from plast_train.lvlm.loading import Lvlm
from plast_train.runtime.distributed import Ranks


@dataclass(frozen=True)
class Batch:
    """One rank's rows of a step, as planned and as tensors, and how long the loop waited for them, in
    seconds."""

    step: Step
    rows: list[tuple[RankRow, PackedRow]]
    waited: float


def batches(steps: Sequence[Step], lvlm: Lvlm, ranks: Ranks) -> Iterator[Batch]:
    """This rank's batches; a thread makes the next one while the caller works on one."""
    with ThreadPoolExecutor(max_workers=1) as pool:

        def ready(step: Step) -> list[tuple[RankRow, PackedRow]]:
            rank_rows = shard_step(step.rows, ranks.rank, ranks.world)
            return [(rank_row, load_row(rank_row.trees, lvlm)) for rank_row in rank_rows]

        ahead = pool.submit(ready, steps[0]) if steps else None
        for number, step in enumerate(steps):
            began = time.monotonic()
            assert ahead is not None
            rows = ahead.result()
            waited = time.monotonic() - began
            ahead = pool.submit(ready, steps[number + 1]) if number + 1 < len(steps) else None
            yield Batch(step, rows, waited)
