"""`plast doctor --distributed`: started on every machine of an allocation at once, it finds what would end a
run on them, and which machine it is, before any GPU has worked."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.doctor.heartbeat import Heartbeat
from launcher.doctor.machine import Finding
from launcher.doctor.rendezvous import Rendezvous, join_rendezvous, open_rendezvous, quiet_sockets
from launcher.processes.torchrun import Machines
from plast_train.errors import UserError

# For a file written on one machine to show on another.
FOLDER_SECONDS = 8.0
# To connect to a machine that is ready; and for one that is there but not ready, so many times the wait.
REACH_SECONDS, STARTING = 10.0, 2
# For the first machine to look at what all have told.
VERDICT_SECONDS = 60.0
# Ranks import what their launcher has imported, but all at once: so many times as long, and at least this.
SLOWER_START, LEAST_START = 3.0, 25.0


@dataclass
class Result:
    """What the first machine knows; mappings are by machine. Skews in seconds, bandwidths (to the neighbour)
    in bytes a second, `all_reduce` over all ranks, None where it was not measured."""

    facts: dict[int, dict[str, Any]]
    findings: list[Finding] = field(default_factory=list)
    skews: dict[int, float] = field(default_factory=dict)
    bandwidths: dict[int, float] = field(default_factory=dict)
    all_reduce: dict[str, Any] | None = None

    @property
    def fit(self) -> bool:
        return all(finding.level != "fail" for finding in self.findings)


def run_distributed_doctor(out: Path, nproc: int | None, wait: int) -> int:
    """Checks all machines together; `wait` is how many seconds they may come late. The first one prints a
    table and what is wrong. Returns, on all of them, 0 where they are fit and else 2.

    Raises:
        UserError: this machine cannot take part.
    """
    begin = time.monotonic()
    quiet_sockets()
    machines = _machines()
    with Heartbeat(out, machines.rank, machines.count, platform.node()) as heartbeat:
        facts = _describe(out, nproc, heartbeat)
        rendezvous = _meet(machines, heartbeat, wait)
        rendezvous.post("facts", facts)
        if not machines.is_first:
            return _follow(rendezvous, machines, heartbeat, facts, wait)
        result = _lead(rendezvous, machines, heartbeat, wait)
        _say(result, machines, time.monotonic() - begin)
        code = 0 if result.fit else 2
        rendezvous.announce("verdict", code)
        rendezvous.gather("bye", 3.0, lambda node: node == 0 or node not in result.facts)
        return code


def _machines() -> Machines:
    """Raises UserError inside a Slurm job of several nodes where nobody said which of them this is."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1" and "NNODES" not in os.environ:
        raise UserError(
            f"this job has {nodes} nodes, but NNODES, NODE_RANK and MASTER_ADDR are not set; slurm/job.sh "
            "sets them; else set in each task NNODES=$SLURM_NNODES NODE_RANK=$SLURM_NODEID and MASTER_ADDR "
            "(the first node)"
        )
    return Machines.of(os.environ)


class _Hope:
    """Whether another machine may still come, counted from when this one is ready: one that is seen to start
    gets more time, and one that can be connected to little."""

    def __init__(self, heartbeat: Heartbeat, wait: int) -> None:
        self._heartbeat, self._wait, self._begin, self._open = heartbeat, wait, time.monotonic(), 0.0

    def is_gone(self, node: int = 0) -> bool:
        now = time.monotonic()
        if self._heartbeat.is_open(node):
            self._open = self._open or now
            return now > self._open + REACH_SECONDS
        waited = STARTING * self._wait if node in self._heartbeat.alive else self._wait
        return bool(self._heartbeat.problem_of(node)) or now > self._begin + waited


def _describe(out: Path, nproc: int | None, heartbeat: Heartbeat) -> dict[str, Any]:
    """Raises UserError where the program or torch cannot even be imported."""
    begin = time.monotonic()
    try:
        from launcher.doctor.facts import describe_machine

        facts = describe_machine(out, nproc)
    except (ImportError, OSError) as error:
        message = f"{platform.node()}: {error}; run plast doctor there"
        heartbeat.has(message)
        raise UserError(message) from None
    seconds = time.monotonic() - begin
    return facts | {"nonce": heartbeat.nonce, "folder_error": heartbeat.error, "seconds": seconds}


def _meet(machines: Machines, heartbeat: Heartbeat, wait: int) -> Rendezvous:
    """Raises UserError where this machine cannot open the rendezvous, or come to it."""
    from launcher.doctor.absent import first_is_absent

    if machines.is_first:
        try:
            rendezvous = open_rendezvous(machines)
        except UserError as error:
            heartbeat.has(str(error))
            raise
        heartbeat.opens()
        return rendezvous
    try:
        return join_rendezvous(machines, _Hope(heartbeat, wait).is_gone)
    except UserError as error:
        message = first_is_absent(error, machines, heartbeat, wait)
        if not heartbeat.problem_of(0):
            heartbeat.has(str(error))
        raise UserError(message) from None


def _follow(
    rendezvous: Rendezvous, machines: Machines, heartbeat: Heartbeat, facts: Mapping[str, Any], wait: int
) -> int:
    """Raises UserError where the first machine's doctor ends before this one."""
    try:
        plan = rendezvous.hear("plan", STARTING * wait + FOLDER_SECONDS)
        if plan is not None:
            _look_around(rendezvous, heartbeat, plan)
            rendezvous.post("clock", rendezvous.clock_offset())
            if plan["ranks"]:
                _run_ranks(rendezvous, machines, facts, plan)
        verdict = int(rendezvous.hear("verdict", VERDICT_SECONDS))
        rendezvous.post("bye", True)
    except RuntimeError:  # of the store
        raise UserError(f"{facts['host']}: the first machine's doctor ended early; see its output") from None
    if verdict:
        print(f"{facts['host']}: not fit for a run; the first machine says why", file=sys.stderr)
    return verdict


def _run_ranks(
    rendezvous: Rendezvous, machines: Machines, facts: Mapping[str, Any], plan: Mapping[str, Any]
) -> None:
    from launcher.doctor.ranks import ALL_SECONDS, PAIRS_SECONDS, local_ranks

    with local_ranks(plan, machines, len(facts["gpus"])) as ranks:
        rendezvous.post("ended", ranks.end(rendezvous, plan["start_seconds"] + PAIRS_SECONDS + ALL_SECONDS))


def _lead(rendezvous: Rendezvous, machines: Machines, heartbeat: Heartbeat, wait: int) -> Result:
    from launcher.doctor import findings as findings_of
    from launcher.doctor.absent import absent_findings

    hope = _Hope(heartbeat, wait)
    facts = rendezvous.gather("facts", STARTING * wait, hope.is_gone)
    result = Result(facts)
    for check in (
        findings_of.version_findings,
        findings_of.code_findings,
        findings_of.gpu_findings,
        findings_of.disk_findings,
        findings_of.start_findings,
    ):
        result.findings += check(facts)
    if len(facts) < machines.count:
        rendezvous.announce("plan", None)
        result.findings += absent_findings(facts, machines, heartbeat, wait)
        return result
    plan = _plan(rendezvous, facts)
    rendezvous.announce("plan", plan)
    _look_around(rendezvous, heartbeat, plan)
    result.findings += findings_of.folder_findings(facts, rendezvous.gather("sees", FOLDER_SECONDS))
    rendezvous.answer_clocks()
    rendezvous.post("clock", (0.0, 0.0))
    offsets = rendezvous.gather("clock", 5.0)
    result.skews = findings_of.clock_skews(offsets)
    result.findings += findings_of.clock_findings(facts, offsets)
    if plan["ranks"]:
        _lead_ranks(rendezvous, machines, plan, result)
    return result


def _plan(rendezvous: Rendezvous, facts: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the machines need to know of each other: the store's port, the numbers of ranks (none where they
    cannot exchange, for what is found already) and how long they may take to start, and what is to be read
    in the run folder."""
    from launcher.doctor.findings import can_exchange

    return {
        "port": rendezvous.store.port,
        "ranks": [facts[node]["ranks"] for node in range(len(facts))] if can_exchange(facts) else [],
        "start_seconds": max(LEAST_START, *(SLOWER_START * own["seconds"] for own in facts.values())),
        "nonces": {str(node): own["nonce"] for node, own in facts.items() if not own["folder_error"]},
    }


def _look_around(rendezvous: Rendezvous, heartbeat: Heartbeat, plan: Mapping[str, Any]) -> None:
    nonces = {int(node): nonce for node, nonce in plan["nonces"].items()}
    rendezvous.post("sees", heartbeat.find(nonces, FOLDER_SECONDS))


def _lead_ranks(rendezvous: Rendezvous, machines: Machines, plan: Mapping[str, Any], result: Result) -> None:
    from launcher.doctor.findings import best_bandwidths
    from launcher.doctor.ranks import ALL_SECONDS, PAIRS_SECONDS, hear_ranks, local_ranks, rank_findings

    with local_ranks(plan, machines, len(result.facts[0]["gpus"])) as ranks:
        told = hear_ranks(rendezvous, ranks, plan["start_seconds"] + PAIRS_SECONDS)
        rendezvous.post("ended", ranks.end(rendezvous, ALL_SECONDS))
    told.errors = rendezvous.gather("ended", ALL_SECONDS)
    told.all = rendezvous.known("all")
    result.findings += rank_findings(result.facts, told)
    if told.all is None and result.fit:
        text = f"no all-reduce over all {sum(plan['ranks'])} ranks in time"
        result.findings.append(Finding("fail", "network", text, "run it again; NCCL_DEBUG=INFO tells more"))
    result.bandwidths, result.all_reduce = best_bandwidths(told.pairs), told.all


def _say(result: Result, machines: Machines, seconds: float) -> None:
    from launcher.doctor.table import all_reduce_line, machine_table

    print(machine_table(result.facts, machines.count, result.skews, result.bandwidths))
    for finding in result.findings:
        print(finding)
    print(all_reduce_line(result.facts, result.all_reduce))
    plural, fit = "s" * (machines.count > 1), "fit" if result.fit else "not fit"
    print(f"{machines.count} machine{plural}: {fit} for a run ({seconds:.1f} s)", flush=True)
