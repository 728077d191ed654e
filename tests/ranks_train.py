"""What each rank does in the training tests: the training stage on each of the run folders named."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from plast_train.config import load_config
from plast_train.context import Context
from plast_train.distributed import end_ranks, start_ranks
from plast_train.errors import Interrupted, UserError
from plast_train.run_folder import RunFolder
from plast_train.training import checkpoint_files
from plast_train.training.deepspeed_config import load_deepspeed_config
from plast_train.training.train import train


def main(runs: list[str]) -> int:
    checkpoint_files.SECONDS_TO_SEE = 0.5  # what is missing here does not come late
    ranks = start_ranks(Path(runs[0]) / "logs")
    for run in map(Path, runs):
        config = load_config(str(run / "config.yaml"))
        try:
            train(Context(config, RunFolder(run), ranks, load_deepspeed_config(config)))
        except (UserError, Interrupted) as error:
            if ranks.is_first:
                (run / f"{type(error).__name__}.txt").write_text(str(error), encoding="utf-8")
    ranks.barrier()
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        code = 1
    end_ranks(code)
