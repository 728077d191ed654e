"""What one rank does for `plast doctor --distributed`: all-reduces inside its machine, between neighbouring
machines and over all ranks, each in a group of its own, so that what fails can be named.

Run as `python -m plast_train.runtime.cluster_check SPEC`, a `RankSpec` as JSON. Everything is reported
through the doctors' rendezvous, under the names `inside/NODE`, `pairs/NODE` and `all`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from plast_train.runtime.rendezvous import Rendezvous

MEGABYTE = 2**20
# Payloads grow eightfold from the first to the last, as long as the next should take at most a second: large
# ones reach a fast network's full bandwidth, and a slow one is not kept busy for minutes.
FIRST_SIZE, LAST_SIZE, GROWTH = MEGABYTE, 512 * MEGABYTE, 8
NUM_REPEATS = 4
MOST_SECONDS = 1.0
# For a group to form and exchange; more means that its members do not reach each other.
GROUP_SECONDS = 10.0
# For all machines to report their pairs: at most three rounds of `GROUP_SECONDS`, and some for slow machines.
PAIRS_SECONDS = 45.0
# Announced by a machine's doctor whose ranks have failed: the others then need not wait for them.
FAILED = "failed"


@dataclass(frozen=True)
class RankSpec:
    """One rank's part: the rendezvous' address, its machine, all machines' numbers of ranks, its place on its
    machine. All ranks have started after `start_seconds`."""

    address: str
    port: int
    node: int
    counts: list[int]
    local_rank: int
    start_seconds: float

    @property
    def num_nodes(self) -> int:
        return len(self.counts)

    @property
    def rank(self) -> int:
        """Among all ranks, counted machine by machine."""
        return sum(self.counts[: self.node]) + self.local_rank


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Bytes a second that each rank's link carried in an all-reduce of `size` bytes: size / seconds times
    2 (n - 1) / n, which makes figures of different numbers of ranks comparable.

    Source: NVIDIA, nccl-tests, doc/PERFORMANCE.md, "AllReduce".
    """
    return size / seconds * 2 * (ranks - 1) / ranks


def pair_rounds(num_nodes: int) -> list[list[tuple[int, int]]]:
    """Neighbours on a ring of machines, in rounds in which each machine is in one pair at most."""
    edges = [(node, node + 1) for node in range(num_nodes - 1)]
    rounds = [edges[0::2], edges[1::2]]
    if num_nodes > 2:
        # The pair that closes an odd ring shares a machine with both rounds, so it needs a third.
        rounds += [[]] * (num_nodes % 2)
        rounds[-1] = [*rounds[-1], (0, num_nodes - 1)]
    return [pairs for pairs in rounds if pairs]


def check(spec: RankSpec) -> None:
    """All the all-reduces of this rank.

    Raises:
        RuntimeError: a machine's pairs did not come, or the group of all ranks failed; failures of smaller
            groups are reported.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", spec.local_rank)
        torch.cuda.set_device(device)
    store = dist.TCPStore(spec.address, spec.port, timeout=timedelta(seconds=PAIRS_SECONDS))
    rendezvous = Rendezvous(store, spec.node, spec.num_nodes)
    _meet(store, "started", sum(spec.counts), spec.start_seconds)
    if spec.counts[spec.node] > 1:
        result = _try_group(store, f"inside-{spec.node}", spec.local_rank, spec.counts[spec.node], device)
        if spec.local_rank == 0:
            rendezvous.post("inside", result)
    if spec.local_rank == 0:
        rendezvous.post("pairs", _pairs(store, spec, device))
    # One blocking request: hundreds of ranks that ask again and again would keep the store busy.
    store.wait([f"pairs/{node}" for node in range(spec.num_nodes)], timedelta(seconds=PAIRS_SECONDS))
    results = list(rendezvous.gather("inside", 0.0).values())
    results += [result for own in rendezvous.gather("pairs", 0.0).values() for result in own.values()]
    # Where a smaller group failed, that of all ranks would only wait for its timeout and tell nothing new.
    if not any("error" in result for result in results):
        result = _run_group(store, "all", spec.rank, sum(spec.counts), device, 2 * GROUP_SECONDS)
        if spec.rank == 0:
            rendezvous.announce("all", result)


def _pairs(store: dist.TCPStore, spec: RankSpec, device: torch.device) -> dict[int, dict[str, Any]]:
    """The result with each neighbour. All machines begin a round together: else one that waited in vain in
    the round before would keep a sound neighbour waiting too."""
    results = {}
    for number, pairs in enumerate(pair_rounds(spec.num_nodes)):
        _meet(store, f"round-{number}", spec.num_nodes, GROUP_SECONDS + 2)
        for pair in pairs:
            if spec.node in pair:
                place = pair.index(spec.node)
                results[pair[1 - place]] = _try_group(store, f"pair-{pair}", place, 2, device)
    return results


def _try_group(store: dist.Store, name: str, rank: int, world: int, device: torch.device) -> dict[str, Any]:
    try:
        return _run_group(store, name, rank, world, device, GROUP_SECONDS)
    except RuntimeError as error:
        return {"error": str(error).strip().splitlines()[0]}


def _run_group(
    store: dist.Store, name: str, rank: int, world: int, device: torch.device, timeout: float
) -> dict[str, Any]:
    """Forms a group, checks a sum and measures: `size` in bytes, `seconds` of one all-reduce of that size,
    `bandwidth` in bytes a second.

    Raises:
        RuntimeError: no connection, no answer in time, or a wrong sum.
    """
    dist.init_process_group(
        # Training exchanges through gloo on GPUs too, so both are tried there.
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(name, store),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )
    try:
        for kind in dict.fromkeys(("cpu", device.type)):  # in one order on all ranks
            summed = torch.full((1000,), rank + 1, device=kind)
            dist.all_reduce(summed)
            if not bool((summed == world * (world + 1) // 2).all()):
                raise RuntimeError(f"the all-reduce on {kind} gave a wrong sum, {summed[0].item()}")
        size = FIRST_SIZE
        while (seconds := _seconds_of(size, device)) * GROWTH * (NUM_REPEATS + 1) <= MOST_SECONDS:
            if size >= LAST_SIZE:
                break
            size *= GROWTH
        return {"size": size, "seconds": seconds, "bandwidth": bus_bandwidth(size, seconds, world)}
    finally:
        dist.destroy_process_group()


def _seconds_of(size: int, device: torch.device) -> float:
    """The slowest rank's mean time, so that all ranks go on with the same size."""
    payload = torch.zeros(size // 4, device=device)
    dist.all_reduce(payload)  # the first one also sets up the connections
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(NUM_REPEATS):
        dist.all_reduce(payload)
    _synchronize(device)
    seconds = torch.tensor([(time.perf_counter() - began) / NUM_REPEATS], device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds.item())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _meet(store: dist.TCPStore, name: str, count: int, seconds: float) -> None:
    """Waits for `count` ranks, or that long: who is missing shows in the groups."""
    deadline = time.monotonic() + seconds
    store.add(name, 1)
    while store.add(name, 0) < count and time.monotonic() < deadline:
        if store.check([FAILED]):
            os._exit(0)
        time.sleep(0.05)


if __name__ == "__main__":
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a timeout is an error of the call, not the process's end
    check(RankSpec(**json.loads(sys.argv[1])))
    sys.stderr.flush()
    os._exit(0)  # nothing to save, and no teardown that could fail
