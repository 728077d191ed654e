"""Where the doctors of all machines and their ranks meet: a key-value store on the first machine, at the port
where a run's ranks would meet."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore

from plast_train.errors import UserError

# The quickest of these is taken; the first ones are slow while the connection warms up.
CLOCK_ROUND_TRIPS = 8
# One round trip takes milliseconds. The first machine answers one machine after the other, so that these wait
# for their turn: longer, but not forever where one before them has died.
CLOCK_SECONDS, CLOCK_TURN_SECONDS = 5.0, 30.0


class Rendezvous:
    """What machines report to each other, as JSON. Every machine posts under its own number; what the first
    one announces is for all."""

    def __init__(self, store: TCPStore, node: int, num_nodes: int) -> None:
        self.store, self.node, self.num_nodes = store, node, num_nodes

    def post(self, name: str, value: Any) -> None:
        self.announce(f"{name}/{self.node}", value)

    def announce(self, name: str, value: Any) -> None:
        self.store.set(name, json.dumps(value))

    def read(self, name: str) -> Any:
        """What was announced; None if nothing yet."""
        return json.loads(self.store.get(name)) if self.store.check([name]) else None

    def wait_for(self, name: str, seconds: float) -> Any:
        """What is announced within `seconds`.

        Raises:
            RuntimeError: nothing, or the first machine has ended.
        """
        self.store.wait([name], timedelta(seconds=seconds))
        return json.loads(self.store.get(name))

    def gather(self, name: str, seconds: float, among: Iterable[int] | None = None) -> dict[int, Any]:
        """What machines posted, by machine; waits up to `seconds` for those `among` whom it asks (all)."""
        deadline = time.monotonic() + seconds
        nodes = list(range(self.num_nodes) if among is None else among)
        while True:
            found = {node: self.read(f"{name}/{node}") for node in nodes}
            if None not in found.values() or time.monotonic() > deadline:
                return {node: value for node, value in found.items() if value is not None}
            time.sleep(0.05)

    def answer_clocks(self, nodes: Iterable[int]) -> None:
        """The first machine's part of `clock_offset`; a machine that stops responding is skipped."""
        for node in nodes:
            with contextlib.suppress(RuntimeError):
                for number in range(CLOCK_ROUND_TRIPS):
                    self.store.wait([f"ask/{node}/{number}"], timedelta(seconds=CLOCK_SECONDS))
                    self.announce(f"answer/{node}/{number}", time.time())

    def clock_offset(self) -> tuple[float, float]:
        """Seconds that this clock is ahead of the first machine's, and by how much that may be wrong.

        The other clock is taken to be read in the middle of the quickest of some round trips, which is right
        to half its length (Cristian 1989).
        """
        trips = []
        for number in range(CLOCK_ROUND_TRIPS):
            now, began = time.time(), time.perf_counter()
            self.announce(f"ask/{self.node}/{number}", "")
            answer = self.wait_for(f"answer/{self.node}/{number}", CLOCK_TURN_SECONDS)
            length = time.perf_counter() - began
            trips.append((length, now + length / 2 - answer))
        length, offset = min(trips)
        return offset, length / 2


def open_rendezvous(port: int, num_nodes: int) -> Rendezvous:
    """On the first machine; port 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """
    _silence_sockets()
    try:
        return Rendezvous(TCPStore("localhost", port, is_master=True, wait_for_workers=False), 0, num_nodes)
    except RuntimeError as error:
        raise UserError(
            f"port {port} of the first machine cannot be used ({str(error).strip().splitlines()[0]}); end "
            "what listens there, or set another MASTER_PORT on all machines"
        ) from None


def join_rendezvous(address: str, port: int, node: int, num_nodes: int, seconds: float) -> Rendezvous:
    """On the other machines; tries for that long.

    Raises:
        UserError: no connection; the message says why.
    """
    _silence_sockets()
    deadline = time.monotonic() + seconds
    while True:
        try:
            # TCPStore's own attempts print pages and give no reason, so a plain socket goes first.
            socket.create_connection((address, port), timeout=3).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"node 1 of {num_nodes} (NODE_RANK=0) did not answer at {address}:{port} "
                    f"within {seconds:.0f} s ({error.strerror or error}); look at that machine's own output; "
                    "if it is running, open the port between the machines, or set MASTER_ADDR to an address "
                    "that all reach"
                ) from None
        time.sleep(0.2)
    return Rendezvous(TCPStore(address, port, timeout=timedelta(seconds=CLOCK_SECONDS)), node, num_nodes)


def _silence_sockets() -> None:
    """torch's own lines about connections would mix with what the doctor prints."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
