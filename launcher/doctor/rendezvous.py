"""Where the doctors of all machines meet: a store on the first one, at the port where ranks would meet."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launcher.processes.torchrun import Machines
from plast_train.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

CLOCK_ROUNDS = 8
# The first machine waits for each other one in turn, and these for their turn.
CLOCK_SECONDS, ANSWER_SECONDS = 5.0, 30.0


class Rendezvous:
    """What machines tell each other. A name that a machine posts under is its own; what the first machine
    announces is for all."""

    def __init__(self, store: TCPStore, machines: Machines) -> None:
        self.store, self.node, self.nodes = store, machines.rank, machines.count

    def post(self, name: str, value: Any) -> None:
        self.store.set(f"{name}/{self.node}", json.dumps(value))

    def gather(
        self, name: str, seconds: float, enough: Callable[[int], bool] | None = None
    ) -> dict[int, Any]:
        """What the machines posted, waiting that long for those that have not; not for those that `enough`
        is true of."""
        end = time.monotonic() + seconds
        came: dict[int, Any] = {}
        while True:
            for node in range(self.nodes):
                if node not in came and self.store.check([f"{name}/{node}"]):
                    came[node] = json.loads(self.store.get(f"{name}/{node}"))
            waited_for = [n for n in range(self.nodes) if n not in came and not (enough and enough(n))]
            if not waited_for or time.monotonic() > end:
                return came
            time.sleep(0.05)

    def announce(self, name: str, value: Any) -> None:
        self.store.set(name, json.dumps(value))

    def hear(self, name: str, seconds: float) -> Any:
        """What the first machine announces; RuntimeError where it does not in that time."""
        self.store.wait([name], timedelta(seconds=seconds))
        return json.loads(self.store.get(name))

    def known(self, name: str) -> Any:
        """What was announced or posted under a full name, None if nothing yet."""
        return json.loads(self.store.get(name)) if self.store.check([name]) else None

    def answer_clocks(self) -> None:
        """The first machine's part of `clock_offset`, machine by machine. One that falls silent is left."""
        for node in range(1, self.nodes):
            with contextlib.suppress(RuntimeError):
                for number in range(CLOCK_ROUNDS):
                    self.store.wait([f"ask/{node}/{number}"], timedelta(seconds=CLOCK_SECONDS))
                    self.store.set(f"answer/{node}/{number}", repr(time.time()))

    def clock_offset(self) -> tuple[float, float]:
        """Seconds that this clock is ahead of the first machine's, and by how much that may be wrong.

        The other clock is taken to be read in the middle of the quickest of some round trips, which is right
        to half its length (Cristian 1989).
        """
        offset, quickest = 0.0, float("inf")
        for number in range(CLOCK_ROUNDS):
            now, begin = time.time(), time.perf_counter()
            self.store.set(f"ask/{self.node}/{number}", "")
            self.store.wait([f"answer/{self.node}/{number}"], timedelta(seconds=ANSWER_SECONDS))
            answer = float(self.store.get(f"answer/{self.node}/{number}"))
            trip = time.perf_counter() - begin
            if trip < quickest:
                offset, quickest = now + trip / 2 - answer, trip
        return offset, quickest / 2


def open_rendezvous(machines: Machines) -> Rendezvous:
    """On the first machine.

    Raises:
        UserError: the port is taken.
    """
    from torch.distributed import TCPStore

    port = machines.port if machines.count > 1 else 0
    try:
        return Rendezvous(TCPStore("localhost", port, is_master=True, wait_for_workers=False), machines)
    except RuntimeError as error:
        raise UserError(
            f"port {machines.port} of the first machine cannot be used ({_first_line(error)}); end what "
            "listens there, or set another MASTER_PORT on all machines"
        ) from None


def join_rendezvous(machines: Machines, is_hopeless: Callable[[], bool]) -> Rendezvous:
    """On the other machines; tries until there is no hope.

    Raises:
        UserError: no connection; the message says why.
    """
    from torch.distributed import TCPStore

    while (error := _try_port(machines)) is not None:
        if is_hopeless():
            raise UserError(f"{machines.address}:{machines.port} cannot be reached from here ({error})")
        time.sleep(0.2)
    store = TCPStore(machines.address, machines.port, timeout=timedelta(seconds=CLOCK_SECONDS))
    return Rendezvous(store, machines)


def _try_port(machines: Machines) -> str | None:
    """Why the port does not answer; None if it does."""
    try:
        socket.create_connection((machines.address, machines.port), timeout=3).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def quiet_sockets() -> None:
    """torch's own lines about connections, which come before and beside what the doctor says."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
