"""Ranks on this machine: torchrun's command, the signals to the ranks, their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from launcher.processes.child import STOP_SIGNALS
from launcher.processes.outcome import SECONDS_TO_END, Notes, OtherRanks, Outcome, outcome_of
from plast_train.errors import UserError
from plast_train.run_folder import RunFolder
from plast_train.runtime.failures import note_paths

# What a rank runs, as `python -m`.
PIPELINE = "plast_train.pipeline"
# A rank that has not set its handlers yet ignores signals, so a stop is repeated until the ranks have ended.
SECONDS_BETWEEN_SIGNALS = 2.0
# A rank on a GPU only decodes images on the CPU; more threads than this do not make that faster.
MOST_THREADS = 8
# What ranks have handlers for; a terminal's SIGINT and SIGHUP reach them as SIGTERM.
PASSED_ON = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


@dataclass(frozen=True)
class Machines:
    """How many machines take part and which this is, from the variables that cluster software sets on each:
    NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT."""

    count: int = 1
    rank: int = 0
    address: str = ""
    port: int = 29500

    @staticmethod
    def of(environment: Mapping[str, str]) -> Machines:
        """Raises UserError for a value that is not a number, and for several machines without an address."""

        def number(name: str, default: int) -> int:
            text = environment.get(name, str(default))
            if not text.isdigit():
                raise UserError(f"environment variable {name}={text}: it must be a number")
            return int(text)

        count, rank = number("NNODES", 1), number("NODE_RANK", 0)
        if count <= 1:
            return Machines()
        address = environment.get("MASTER_ADDR", "")
        if not address:
            raise UserError(f"NNODES={count}, but MASTER_ADDR, the first machine's address, is not set")
        if rank >= count:
            raise UserError(f"NODE_RANK={rank}, but NNODES={count}; machines are numbered from 0")
        return Machines(count, rank, address, number("MASTER_PORT", 29500))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def options(self) -> list[str]:
        """torchrun's options."""
        if self.count == 1:
            return ["--standalone"]
        options: dict[str, int | str] = {"nnodes": self.count, "node-rank": self.rank}
        options |= {"master-addr": self.address, "master-port": self.port}
        return [f"--{name}={value}" for name, value in options.items()]


def command(
    run: RunFolder, arguments: Sequence[str], nproc: int, machines: Machines, module: str | None = None
) -> list[str]:
    """The argument list that starts torchrun's agent with `nproc` ranks of the pipeline or of `module`, whose
    own arguments are the run's folder and `arguments` (of the pipeline: stages)."""
    return [
        *(sys.executable, "-m", "launcher.processes.child", "torch.distributed.run"),
        *machines.options(),
        f"--nproc-per-node={nproc}",
        f"--shutdown-timeout={SECONDS_TO_END}",
        "--signals-to-handle=SIGQUIT",  # all others go to the ranks alone, see launcher.processes.child
        *("--module", "launcher.processes.child", module or PIPELINE),
        *(str(run.path.resolve()), *arguments),
    ]


def rank_environment(nproc: int, gpus: int) -> dict[str, str]:
    """This process's environment for the ranks.

    On the CPU a rank has one thread whatever the number of ranks, because sums over another number of
    threads differ in the last digit; the user's own OMP_NUM_THREADS takes precedence.
    """
    threads = max(1, min(MOST_THREADS, (os.cpu_count() or 1) // nproc)) if gpus else 1
    defaults = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if not gpus:
        defaults["DS_ACCELERATOR"] = "cpu"  # otherwise DeepSpeed warns that it finds no accelerator
    # DeepSpeed needs ninja, which lies beside Python also where the environment is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**defaults, **os.environ, "PATH": path}


def start_ranks(
    run: RunFolder,
    arguments: Sequence[str],
    nproc: int,
    gpus: int,
    machines: Machines,
    module: str | None = None,
) -> Outcome:
    """Runs `nproc` ranks here (see `command`) and waits until they end, on this machine and all others.

    A stop signal is passed on to the ranks, which save and end; a second Ctrl-C ends them at once.

    Raises:
        KeyboardInterrupt: a second Ctrl-C.
    """
    run.logs.mkdir(parents=True, exist_ok=True)
    if machines.is_first:
        for old in [*note_paths(run.logs), *run.logs.glob("stacks-rank-*.txt")]:
            old.unlink()
    notes = Notes(run.logs)
    with torchrun_log(run, machines).open("wb") as log:
        agent = subprocess.Popen(
            command(run, arguments, nproc, machines, module),
            env=rank_environment(nproc, gpus),
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C on the terminal reaches the launcher alone
        )
        code = _wait(agent, notes)
    return outcome_of(notes, torchrun_log(run, machines), code, machines.rank * nproc, machines.count > 1)


def torchrun_log(run: RunFolder, machines: Machines) -> Path:
    """The output of torchrun's agent on this machine, and of ranks that fail before they have a log."""
    return run.logs / ("torchrun.log" if machines.is_first else f"torchrun-{machines.rank}.log")


def _wait(agent: subprocess.Popen[bytes], notes: Notes) -> int:
    """Waits for the end of the ranks, passing signals on. Returns torchrun's exit code.

    When a rank of any machine has left a failure note, those here get a short time to end by themselves.

    Raises:
        KeyboardInterrupt: on a second Ctrl-C, after killing them.
    """
    with _received_signals() as received:
        stopping, others = False, OtherRanks(agent.pid, notes)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return agent.wait(timeout=SECONDS_BETWEEN_SIGNALS if stopping else 0.2)
            if others.are_overdue():
                _signal(agent, signal.SIGKILL)
                agent.wait()
                return 1  # the signal that ended torchrun here says nothing about the failure
            if received.count(signal.SIGINT) > 1:
                _signal(agent, signal.SIGKILL)
                agent.wait()
                raise KeyboardInterrupt
            elif received:
                _signal(agent, received[-1] if received[-1] in PASSED_ON else signal.SIGTERM)
                if not stopping:
                    print("plast: stopping; the ranks save first", file=sys.stderr, flush=True)
                stopping = True


def _signal(agent: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the ranks, which are the agent's children; SIGKILL to the agent too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(agent.pid)
        for rank in process.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)
        if number == signal.SIGKILL:
            process.kill()


@contextlib.contextmanager
def _received_signals() -> Iterator[list[signal.Signals]]:
    """The stop signals that arrive inside the block, in their order; not a SIGHUP that nohup had ignored."""
    received: list[signal.Signals] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    wanted = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not nohup]
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
