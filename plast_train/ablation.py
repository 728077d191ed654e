"""What every rank of an ablation executes: several run folders in one launch, the base loaded once.

Started by the launcher through torchrun as `python -m plast_train.ablation OUT RUN…`, where
`OUT/runs` holds the run folders, prepared as for `pipeline`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from plast_train.comparison.sharing import share
from plast_train.comparison.variants import STAGES
from plast_train.context import context_of
from plast_train.errors import Diverged
from plast_train.lvlm.attention import implementation_for, set_attention
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.weights import load_weights
from plast_train.pipeline import run_stages
from plast_train.run_folder import RunFolder, publish_text
from plast_train.runtime.distributed import Ranks, end_ranks
from plast_train.runtime.rank import run_rank


def run_all(runs: Sequence[RunFolder], ranks: Ranks) -> None:
    """Runs all stages of each run in turn. A stage that an earlier run has done with the same settings and
    inputs is taken over from it (see `sharing`).

    Raises:
        Interrupted: a stop signal came; what is done stays done.
        UserError: see the stages. A run that diverges ends only itself; its `diverged.txt` says why.
    """
    lvlm: Lvlm | None = None
    for number, run in enumerate(runs, start=1):
        ranks.say(f"\nrun {number} of {len(runs)}: {run.path.name}")
        context = context_of(run, ranks)
        ranks.on_first(partial(share, context))
        if lvlm is not None:
            context.lvlm = lvlm
        ranks.on_first(partial(run.diverged.unlink, missing_ok=True))  # of an earlier attempt
        try:
            run_stages(context, STAGES)
        except Diverged as diverged:
            ranks.say(f"WARNING: {run.path.name} is left out of the comparison: {diverged}")
            ranks.on_first(partial(publish_text, run.diverged, f"{diverged}\n"))
        if "lvlm" in context.__dict__:  # loaded, or handed on
            lvlm = context.lvlm
            # The next run begins with the base, in spite of what this one trained and analysed.
            load_weights(lvlm, lvlm.path, context.changed_parameters(), ranks)
            set_attention(lvlm.model, implementation_for(ranks.device))


def main(arguments: Sequence[str]) -> int:
    out, names = Path(arguments[0]), arguments[1:]
    runs = [RunFolder(out / "runs" / name) for name in names]
    return run_rank(RunFolder(out), partial(run_all, runs))


if __name__ == "__main__":
    end_ranks(main(sys.argv[1:]))
