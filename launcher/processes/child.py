"""The first lines of every process the launcher starts: torchrun's agent and, through it, the ranks.

`python -m launcher.processes.child MODULE ARGUMENTS…` runs MODULE as `python -m MODULE ARGUMENTS…` would, but

- it ends when its parent does, so that a killed launcher leaves no rank behind that still writes into the run
  folder (Linux; elsewhere the ranks end at their next exchange);
- it ignores the stop signals until it handles them itself: torchrun's agent would kill the ranks while they
  save, and a rank would die of one that arrives before its handlers are set. The launcher signals the ranks
  directly.
"""

from __future__ import annotations

import ctypes
import runpy
import signal
import sys

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
