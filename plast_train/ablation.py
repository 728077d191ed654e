"""What every rank runs for an ablation: several run folders in one launch, the base loaded once.

Started by the launcher through torchrun as `python -m plast_train.ablation OUT RUN…`, where
`OUT/runs` holds the run folders as `pipeline` wants them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from plast_train.comparison.sharing import share
from plast_train.comparison.variants import STAGES
from plast_train.context import Context, context_of
from plast_train.errors import Diverged
from plast_train.evaluation.stage import names_of_changed
from plast_train.lvlm.attention import implementation_for
from plast_train.lvlm.loading import Lvlm
from plast_train.lvlm.weights import load_weights
from plast_train.pipeline import run_stages
from plast_train.run_folder import RunFolder, publish_text
from plast_train.runtime.distributed import Ranks, end_ranks
from plast_train.runtime.rank import run_rank


def run_all(runs: Sequence[RunFolder], ranks: Ranks) -> None:
    """Does all stages of each run in turn. What an earlier run has made that a later one would make alike is
    taken over (see `sharing`).

    Raises:
        Interrupted: a stop signal came; what is done stays done.
        UserError: see the stages; a run that diverges ends alone, and why is in its `diverged.txt`.
    """
    lvlm: Lvlm | None = None
    for number, run in enumerate(runs, start=1):
        ranks.say(f"\nrun {number} of {len(runs)}: {run.path.name}")
        context = context_of(run, ranks)
        ranks.on_first(partial(share, context))
        if lvlm is not None:
            context.lvlm = lvlm
        ranks.on_first(partial(run.diverged.unlink, missing_ok=True))
        try:
            run_stages(context, STAGES)
        except Diverged as diverged:
            ranks.say(f"WARNING: {run.path.name} is left out of the comparison: {diverged}")
            ranks.on_first(partial(publish_text, run.diverged, f"{diverged}\n"))
        if "lvlm" in context.__dict__:  # loaded, or handed on
            lvlm = context.lvlm
            _as_loaded(context)


def _as_loaded(context: Context) -> None:
    """Gives the model the base's weights and attention back."""
    lvlm = context.lvlm
    load_weights(lvlm, lvlm.path, names_of_changed(context), context.ranks)
    set_attention: Any = lvlm.model.set_attn_implementation
    set_attention({"text_config": implementation_for(context.ranks.device), "vision_config": "sdpa"})


def main(arguments: Sequence[str]) -> int:
    out, names = Path(arguments[0]), arguments[1:]
    runs = [RunFolder(out / "runs" / name) for name in names]
    return run_rank(RunFolder(out), partial(run_all, runs))


if __name__ == "__main__":
    end_ranks(main(sys.argv[1:]))
