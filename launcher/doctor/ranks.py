"""The ranks with which the machines' doctors try all-reduces, `plast_train.runtime.cluster_check`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.doctor.findings import Facts, label, network_findings
from launcher.doctor.machine import Finding
from launcher.doctor.rendezvous import Rendezvous
from launcher.processes.torchrun import Machines, rank_environment

CHECK = "plast_train.runtime.cluster_check"
ERROR = re.compile(r"[\w.]*(Error|Exception)\b: ")
# Seconds for the groups inside machines and the pairs, once ranks have started; then for the group of all.
PAIRS_SECONDS, ALL_SECONDS = 25.0, 22.0


class LocalRanks:
    """This machine's ranks, started."""

    def __init__(self, plan: Mapping[str, Any], machines: Machines, gpus: int, logs: Path) -> None:
        environment = rank_environment(plan["ranks"][machines.rank], gpus)
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []
        for rank_spec in rank_specs(plan, machines):
            self._logs.append(logs / str(rank_spec["local_rank"]))
            with self._logs[-1].open("wb") as log:
                self._ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "launcher.processes.child", CHECK, json.dumps(rank_spec)],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                    )
                )

    def failed(self) -> list[str]:
        """What the ranks that failed said last."""
        return [
            f"local rank {number}: {_last_line(self._logs[number]) or f'exit code {rank.returncode}'}"
            for number, rank in enumerate(self._ranks)
            if rank.poll()
        ]

    def end(self, rendezvous: Rendezvous, seconds: float) -> list[str]:
        """Waits that long for the ranks, or for one that fails, or until the first machine calls it off, and
        kills the rest. What was wrong."""
        end, called_off = time.monotonic() + seconds, False
        while self._running() and not self.failed() and not called_off and time.monotonic() < end:
            time.sleep(0.1)
            called_off = rendezvous.known("ranks/go") is False
        late = [] if called_off else [f"local rank {number} did not end" for number in self._running()]
        errors = self.failed() or late
        self.kill()
        return errors

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.wait()

    def _running(self) -> list[int]:
        return [number for number, rank in enumerate(self._ranks) if rank.poll() is None]


@contextmanager
def local_ranks(plan: Mapping[str, Any], machines: Machines, gpus: int) -> Iterator[LocalRanks]:
    """Starts this machine's ranks; none is left at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="plast-doctor-") as logs:
        ranks = LocalRanks(plan, machines, gpus, Path(logs))
        try:
            yield ranks
        finally:
            ranks.kill()


def rank_specs(plan: Mapping[str, Any], machines: Machines) -> list[dict[str, Any]]:
    """`cluster_check.RankSpec` of each rank of this machine. `plan["ranks"]` are the machines' numbers of
    ranks."""
    from plast_train.runtime.cluster_check import RankSpec

    counts, node = plan["ranks"], machines.rank
    address = machines.address or "127.0.0.1"
    return [
        asdict(
            RankSpec(
                address=address,
                port=plan["port"],
                node=node,
                nodes=machines.count,
                local_rank=number,
                local_world=counts[node],
                rank=sum(counts[:node]) + number,
                world=sum(counts),
                start_seconds=plan["start_seconds"],
            )
        )
        for number in range(counts[node])
    ]


@dataclass
class Told:
    """What ranks told, by machine: results with neighbours and among a machine's own ranks
    (`cluster_check`), errors of ranks that ended badly; `all` is the result over all ranks."""

    pairs: dict[int, dict[int, dict[str, Any]]]
    inside: dict[int, dict[str, Any]]
    errors: dict[int, list[str]] = field(default_factory=dict)
    all: dict[str, Any] | None = None


def hear_ranks(rendezvous: Rendezvous, own: LocalRanks, seconds: float) -> Told:
    """The first machine's part while ranks run. The group of all is tried only where the smaller ones held;
    else all ranks are to end."""
    told = _hear_groups(rendezvous, own, seconds)
    results = [*told.inside.values(), *(result for own in told.pairs.values() for result in own.values())]
    whole = len(told.pairs) == rendezvous.nodes
    rendezvous.announce("ranks/go", whole and not any("error" in result for result in results))
    return told


def _hear_groups(rendezvous: Rendezvous, own: LocalRanks, seconds: float) -> Told:
    """Waits for the groups of all machines, or until ranks have failed somewhere."""
    end = time.monotonic() + seconds
    nodes = range(rendezvous.nodes)
    while True:
        pairs = rendezvous.gather("pairs", 0.0)
        failed = own.failed() or any(rendezvous.known(f"ended/{node}") for node in nodes)
        if len(pairs) == rendezvous.nodes or failed or time.monotonic() > end:
            inside = {node: rendezvous.known(f"inside/{node}") for node in nodes}
            return Told(
                {node: {int(other): r for other, r in results.items()} for node, results in pairs.items()},
                {node: result for node, result in inside.items() if result},
            )
        time.sleep(0.1)


def rank_findings(facts: Facts, told: Told) -> Iterator[Finding]:
    """First whose ranks failed: their neighbours then fail for want of them."""
    for node in sorted(facts):
        if told.errors.get(node):
            yield Finding(
                "fail", label(node, facts), f"all-reduce: {told.errors[node][0]}",
                "run plast doctor there; NCCL_DEBUG=INFO tells more",
            )  # fmt: skip
        elif node not in told.errors:
            text = "its ranks fell silent"
            yield Finding("fail", label(node, facts), text, "look at that machine's own output")
        elif node not in told.pairs and not any(told.errors.values()):
            text = "its ranks were not ready to exchange in time"
            yield Finding(
                "fail", label(node, facts), text, "see what else runs there, and how fast its disk is"
            )
        if "error" in told.inside.get(node, {}):
            yield Finding(
                "fail", label(node, facts), f"no all-reduce inside it: {told.inside[node]['error']}",
                "look at nvidia-smi topo -m; in a container, start it with --ipc=host or --shm-size=8g",
            )  # fmt: skip
    gone = {node for node in facts if told.errors.get(node, ["silent"])}
    yield from network_findings(
        facts,
        {
            node: {other: result for other, result in results.items() if other not in gone}
            for node, results in told.pairs.items()
            if node not in gone
        },
    )


def _last_line(log: Path) -> str:
    return last_line(log.read_text(encoding="utf-8", errors="replace"))


def last_line(text: str) -> str:
    """Of what a rank said: of a traceback the error, of which torch's may be followed by native frames."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or [""])[-1]
