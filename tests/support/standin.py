"""Takes the place of `plast` in jobs that test the job script alone: no ranks, ready at once.

Appends to RUN/starts its command, node and restart, and to RUN/signals each signal, stops at one as ranks do
(the first node leaves RUN/logs/again), and ends when there is RUN/finish. RUN/deaf: saves for ever.
RUN/fail-N: node N fails.
"""

import os
import signal
import sys
import time
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--out") + 1])
node, restart = os.environ["NODE_RANK"], os.environ.get("SLURM_RESTART_COUNT", "0")


def note(name: str, text: str) -> None:
    with (run / name).open("a") as file:
        file.write(text + "\n")


def end(reason: str) -> None:
    if node == "0":
        (run / "logs" / "again").write_text(reason + "\n")
    os._exit(1)


def stop(number: int, _frame: object) -> None:
    note("signals", f"{signal.Signals(number).name} {node} {restart}")
    if not (run / "deaf").exists():
        end(f"stopped by {signal.Signals(number).name}")


for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    signal.signal(each, stop)
meeting = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
note("starts", "|".join([node, os.environ["NNODES"], restart, meeting, *sys.argv[1:]]))
while not (run / "finish").exists():
    if (run / f"fail-{node}").exists():
        sys.exit(1)
    time.sleep(0.1)
