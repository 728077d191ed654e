"""What one rank does for `plast doctor --distributed`: all-reduces inside its machine, between neighbouring
machines and over all ranks, each in a group of its own, so that what fails can be named.

Run as `python -m plast_train.runtime.cluster_check SPEC`, a `RankSpec` as JSON. Everything is reported
through the launchers' store, under the names `inside/NODE`, `pairs/NODE` and `all`.
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

MEGABYTE = 2**20
# Payloads grow eightfold from the first to the last, as long as one more is expected to take little time.
FIRST_SIZE, LAST_SIZE = MEGABYTE, 512 * MEGABYTE
GROWTH = 8
REPEATS = 4
MOST_SECONDS = 1.0
# That a group has to form and exchange; more means that its members do not reach each other.
GROUP_SECONDS = 10.0
# Until the launchers have looked at the pairs, which may wait for the slowest.
VERDICT_SECONDS = 45.0


@dataclass(frozen=True)
class RankSpec:
    """Where a rank sits: the store's address, its machine among `nodes`, its place among the `local_world`
    ranks of the machine and among the `world` of all. All have started after `start_seconds`."""

    address: str
    port: int
    node: int
    nodes: int
    local_rank: int
    local_world: int
    rank: int
    world: int
    start_seconds: float


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Bytes a second that each rank's link carried in an all-reduce of `size` bytes: size / seconds times
    2 (n - 1) / n, which makes figures of different numbers of ranks comparable.

    Source: NVIDIA, nccl-tests, doc/PERFORMANCE.md, "AllReduce".
    """
    return size / seconds * 2 * (ranks - 1) / ranks


def pair_rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Neighbours on a ring of machines, in rounds in which each machine is in one pair at most."""
    edges = [(node, node + 1) for node in range(nodes - 1)]
    rounds = [edges[0::2], edges[1::2]]
    if nodes > 2:
        closing = (0, nodes - 1)
        if nodes % 2 == 0:
            rounds[1].append(closing)
        else:
            rounds.append([closing])
    return [pairs for pairs in rounds if pairs]


def check(rank_spec: RankSpec) -> None:
    """All the all-reduces of this rank.

    Raises:
        RuntimeError: the group of all ranks failed; failures of the smaller ones are told in the store.
    """
    device = _device(rank_spec.local_rank)
    store = dist.TCPStore(rank_spec.address, rank_spec.port, timeout=timedelta(seconds=VERDICT_SECONDS))
    _meet(store, "ranks/started", rank_spec.world, rank_spec.start_seconds)
    if rank_spec.local_world > 1:
        result = _try_group(
            store, f"inside-{rank_spec.node}", rank_spec.local_rank, rank_spec.local_world, device
        )
        if rank_spec.local_rank == 0:
            _tell(store, f"inside/{rank_spec.node}", result)
    if rank_spec.local_rank == 0:
        _tell(store, f"pairs/{rank_spec.node}", _pairs(store, rank_spec, device))
    if json.loads(store.get("ranks/go")):
        result = _in_group(store, "all", rank_spec.rank, rank_spec.world, device, 2 * GROUP_SECONDS)
        if rank_spec.rank == 0:
            _tell(store, "all", result)


def _pairs(store: dist.Store, rank_spec: RankSpec, device: torch.device) -> dict[int, dict[str, Any]]:
    """The result with each neighbour. All machines begin a round together: else one that waited in vain in
    the round before would keep a sound neighbour waiting too."""
    results = {}
    for number, pairs in enumerate(pair_rounds(rank_spec.nodes)):
        _meet(store, f"ranks/round-{number}", rank_spec.nodes, GROUP_SECONDS + 2)
        for pair in pairs:
            if rank_spec.node in pair:
                place = pair.index(rank_spec.node)
                results[pair[1 - place]] = _try_group(store, f"pair-{pair}", place, 2, device)
    return results


def _try_group(store: dist.Store, name: str, rank: int, world: int, device: torch.device) -> dict[str, Any]:
    try:
        return _in_group(store, name, rank, world, device, GROUP_SECONDS)
    except RuntimeError as error:
        return {"error": str(error).strip().splitlines()[0]}


def _in_group(
    store: dist.Store, name: str, rank: int, world: int, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Forms a group, checks a sum and measures. Training exchanges through gloo on GPUs too, so both are
    tried there.

    Raises:
        RuntimeError: no connection, no answer in time, or a wrong sum.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(name, store),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    try:
        for kind in dict.fromkeys(("cpu", device.type)):  # in one order on all ranks
            _check_sum(rank, world, torch.device(kind))
        return _measure(world, device)
    finally:
        dist.destroy_process_group()


def _check_sum(rank: int, world: int, device: torch.device) -> None:
    """Raises RuntimeError where 1 + 2 + … + world comes out otherwise."""
    summed = torch.full((1000,), rank + 1, device=device)
    dist.all_reduce(summed)
    if not bool((summed == world * (world + 1) // 2).all()):
        raise RuntimeError(f"the all-reduce on {device.type} gave a wrong sum, {summed[0].item()}")


def _measure(world: int, device: torch.device) -> dict[str, Any]:
    """`size` in bytes, `seconds` of one all-reduce of that size, `bandwidth` in bytes a second."""
    size = FIRST_SIZE
    while True:
        seconds = _seconds_of(size, device)
        if size >= LAST_SIZE or seconds * GROWTH * (REPEATS + 1) > MOST_SECONDS:
            return {"size": size, "seconds": seconds, "bandwidth": bus_bandwidth(size, seconds, world)}
        size *= GROWTH


def _seconds_of(size: int, device: torch.device) -> float:
    """The slowest rank's mean time, so that all ranks get the same answer."""
    payload = torch.zeros(size // 4, device=device)
    dist.all_reduce(payload)
    _synchronize(device)
    begin = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(payload)
    _synchronize(device)
    seconds = torch.tensor([(time.perf_counter() - begin) / REPEATS], device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds.item())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _meet(store: dist.Store, name: str, count: int, seconds: float) -> None:
    """Waits for `count` ranks, or that long: who is missing shows in the groups."""
    end = time.monotonic() + seconds
    store.add(name, 1)
    while store.add(name, 0) < count and time.monotonic() < end:
        if store.check(["ranks/go"]):  # said before its time, it is no
            os._exit(0)
        time.sleep(0.02)


def _tell(store: dist.Store, name: str, result: Any) -> None:
    store.set(name, json.dumps(result))


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


if __name__ == "__main__":
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a timeout is an error of the call, not the process's end
    check(RankSpec(**json.loads(sys.argv[1])))
    sys.stderr.flush()
    os._exit(0)  # nothing to save, and no teardown that could fail
