"""What can be said of machines that did not come to the rendezvous, or could not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

from launcher.doctor.findings import Facts, label
from launcher.doctor.heartbeat import Heartbeat
from launcher.doctor.machine import Finding
from launcher.processes.torchrun import Machines
from plast_train.errors import UserError


def absent_findings(facts: Facts, machines: Machines, heartbeat: Heartbeat, wait: int) -> Iterator[Finding]:
    """Seen from the first machine: each that did not connect, and each whose folder is another one."""
    names = slurm_hosts(machines)
    there = _list_of_there(facts, machines, heartbeat)
    for node in (node for node in range(machines.count) if node not in facts):
        name = _name(node, machines, names)
        if node in heartbeat.alive:
            text = f"{name} is there, but {heartbeat.problem_of(node) or 'starts too slowly'}"
        else:
            text = f"{name} did not come within {wait} s; there: {there}"
        leave_out = f", or leave it out (sbatch --exclude={names[node]})" if names else ""
        yield Finding("fail", f"node {node + 1}", text, f"look at that machine's own output{leave_out}")
    for node in sorted(facts):
        if node and node not in heartbeat.alive and not facts[node]["folder_error"]:
            yield Finding(
                "fail", label(node, facts),
                f"the run folder is not shared: {facts[node]['out']} there is another folder than on the "
                "first machine, so who came but did not connect cannot be told",
                "give --out on a file system that all machines mount",
            )  # fmt: skip


def first_is_absent(error: UserError, machines: Machines, heartbeat: Heartbeat, wait: int) -> str:
    """Seen from another machine that could not connect to the first one for `error`."""
    first = _name(0, machines, slurm_hosts(machines))
    run = heartbeat.folder.parent.absolute()
    if problem := heartbeat.problem_of(0):
        return f"{first} is there, but {problem}"
    if 0 in heartbeat.alive:
        return (
            f"{error}, though {first} is there: open the port between the machines, or give in MASTER_ADDR "
            "an address of it that all reach"
        )
    if len(heartbeat.alive) == 1:
        return f"{error}; {run} shows no other machine: none came in {wait} s, or it is another"
    there = _list_of_there({}, machines, heartbeat)
    return f"{first} did not come within {wait} s; there: {there}; {error}"


def slurm_hosts(machines: Machines) -> list[str]:
    """The nodes of this job in their order; empty outside Slurm."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes or shutil.which("scontrol") is None:
        return []
    asked = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True)
    hosts = asked.stdout.split()
    return hosts if len(hosts) == machines.count else []


def _name(node: int, machines: Machines, names: list[str]) -> str:
    host = f"{names[node]}, " if names else ""
    return f"node {node + 1} of {machines.count} ({host}NODE_RANK={node})"


def _list_of_there(facts: Facts, machines: Machines, heartbeat: Heartbeat) -> str:
    hosts = {node: content["host"] for node, content in heartbeat.alive.items()}
    hosts |= {node: own["host"] for node, own in facts.items()}
    return ", ".join(f"node {node + 1} ({hosts[node]})" for node in range(machines.count) if node in hosts)
