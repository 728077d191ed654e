"""`plast doctor --distributed`: started on every machine of an allocation at once, it finds what would end a
run on them, and which machine it is, before any GPU has worked.

All machines meet at a store on the first one (`runtime.rendezvous`) and report what they have; the first one
compares. Then each starts its ranks (`runtime.cluster_check`), which exchange.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.doctor import findings as findings_of
from launcher.doctor.facts import GIGABYTE, Facts, describe_machine, machine_table
from launcher.doctor.machine import Finding
from launcher.processes.torchrun import Machines, rank_environment
from plast_train.errors import UserError

if TYPE_CHECKING:
    from plast_train.runtime.rendezvous import Rendezvous

# A shared file system shows another machine's new file within a few seconds.
FOLDER_SECONDS = 8.0
# Ranks import what their doctor has imported, but all of a machine at once: this many times as long, and at
# least so many seconds.
SLOWER_START, LEAST_START_SECONDS = 3.0, 25.0
# Once ranks have started: the groups inside machines and up to three rounds of pairs, of which few fail (10 s
# each then), and the group of all (20 s where it fails).
EXCHANGE_SECONDS = 47.0
# By which another machine's ranks may end later than those of the first.
LATER_END_SECONDS = 20.0
# For the first machine to compare, after another has reported how its ranks ended.
VERDICT_SECONDS = 60.0
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b: ")


def run_distributed_doctor(out: Path, nproc: int | None, wait: int) -> int:
    """Checks all machines together; `wait` is how many seconds they may come late. The first one prints a
    table and what is wrong. Returns, on all of them, 0 where they are fit for a run and else 2.

    Raises:
        UserError: this machine cannot take part.
    """
    began = time.monotonic()
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1" and "NNODES" not in os.environ:
        raise UserError(
            f"this job has {nodes} nodes, but NNODES, NODE_RANK and MASTER_ADDR are not set; slurm/job.sh "
            "sets them; otherwise set NNODES=$SLURM_NNODES, NODE_RANK=$SLURM_NODEID and MASTER_ADDR (the "
            "first node) in each task"
        )
    machines = Machines.of(os.environ)
    try:
        from plast_train.runtime.rendezvous import join_rendezvous, open_rendezvous

        facts = describe_machine(out, nproc)
    except (ImportError, OSError) as error:
        raise UserError(f"{platform.node()}: {error}; run plast doctor there") from None
    with _marked_folder(out, machines.is_first) as (folder, nonce, folder_error):
        facts |= {"nonce": nonce, "folder_error": folder_error, "seconds": time.monotonic() - began}
        if machines.is_first:
            rendezvous = open_rendezvous(machines.port if machines.count > 1 else 0, machines.count)
        else:
            rendezvous = join_rendezvous(machines.address, machines.port, machines.rank, machines.count, wait)
        rendezvous.post("facts", facts)
        if not machines.is_first:
            return _follow(rendezvous, machines, facts, folder, wait)
        fit = _lead(rendezvous, machines, folder, wait)
        plural, verdict = "s" * (machines.count > 1), "fit" if fit else "not fit"
        seconds = time.monotonic() - began
        print(f"{machines.count} machine{plural}: {verdict} for a run ({seconds:.1f} s)", flush=True)
        rendezvous.announce("verdict", 0 if fit else 2)
        # The store ends with this process, so the others get a moment to read the verdict.
        came = rendezvous.gather("facts", 0.0)
        rendezvous.gather("bye", 3.0, among=[node for node in came if node])
        return 0 if fit else 2


@contextlib.contextmanager
def _marked_folder(run: Path, is_first: bool) -> Iterator[tuple[Path, str, str]]:
    """Leaves a file of a unique name where all machines should see it; removes it at the end.

    Yields the file's folder, its name, and why it cannot be written, or an empty text.
    """
    run = run.absolute()
    # A run folder that does not exist yet is not made only to check it: its parent lies on the same disk.
    folder = run / ".doctor" if run.is_dir() else run.with_name(f".{run.name}.doctor")
    nonce, problem = secrets.token_hex(8), ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / nonce).touch()
    except OSError as error:
        problem = f"{error.strerror} ({error.filename})"
    try:
        yield folder, nonce, problem
    finally:
        with contextlib.suppress(OSError):  # never written, or another machine still uses the folder
            # The first machine ends after the others, and takes along what killed doctors left.
            for path in folder.iterdir() if is_first else [folder / nonce]:
                path.unlink(missing_ok=True)
            folder.rmdir()


def _follow(
    rendezvous: Rendezvous, machines: Machines, facts: Mapping[str, Any], folder: Path, wait: int
) -> int:
    """Raises UserError where the first machine's doctor ends before this one."""
    try:
        # The first machine was ready before this one connected, and waits that long for the others.
        plan = rendezvous.wait_for("plan", wait + FOLDER_SECONDS)
        _post_visible(rendezvous, folder, plan)
        rendezvous.post("clock", rendezvous.clock_offset())
        if plan["ranks"]:
            rendezvous.post("ended", _run_ranks(rendezvous, plan, machines, len(facts["gpus"])))
        verdict = int(rendezvous.wait_for("verdict", VERDICT_SECONDS))
        rendezvous.post("bye", True)
    except RuntimeError:  # of the store
        raise UserError(f"{facts['host']}: the first machine's doctor ended early; see its output") from None
    if verdict:
        print(f"{facts['host']}: not fit for a run; the first machine's output says why", file=sys.stderr)
    return verdict


def _lead(rendezvous: Rendezvous, machines: Machines, folder: Path, wait: int) -> bool:
    """The first machine's part: compares, prints the table and what is wrong. Whether all are fit."""
    facts = rendezvous.gather("facts", wait)
    can_exchange = len(facts) == machines.count and findings_of.can_exchange(facts)
    plan = {
        "port": rendezvous.store.port,
        "ranks": [facts[node]["ranks"] for node in sorted(facts)] if can_exchange else [],
        "start_seconds": max(LEAST_START_SECONDS, *(SLOWER_START * f["seconds"] for f in facts.values())),
        "nonces": {node: own["nonce"] for node, own in facts.items() if not own["folder_error"]},
    }
    rendezvous.announce("plan", plan)
    _post_visible(rendezvous, folder, plan)
    sees = rendezvous.gather("sees", FOLDER_SECONDS, among=facts)
    rendezvous.answer_clocks(node for node in facts if node)
    rendezvous.post("clock", (0.0, 0.0))
    offsets = rendezvous.gather("clock", 5.0, among=facts)  # each has only to post what it has measured
    findings = [
        *_absent_findings(facts, machines, wait),
        *findings_of.version_findings(facts),
        *findings_of.code_findings(facts),
        *findings_of.gpu_findings(facts),
        *findings_of.disk_findings(facts),
        *findings_of.start_findings(facts),
        *findings_of.folder_findings(facts, {node: list(map(int, seen)) for node, seen in sees.items()}),
        *findings_of.clock_findings(facts, offsets),
    ]
    pairs: dict[int, dict[int, dict[str, Any]]] = {}
    if can_exchange:
        rendezvous.post("ended", _run_ranks(rendezvous, plan, machines, len(facts[0]["gpus"])))
        errors = rendezvous.gather("ended", LATER_END_SECONDS)
        for node, results in rendezvous.gather("pairs", 0.0).items():
            pairs[node] = {int(other): result for other, result in results.items()}
        found = list(findings_of.rank_findings(facts, pairs, rendezvous.gather("inside", 0.0), errors))
        if rendezvous.read("all") is None and all(finding.level != "fail" for finding in found):
            text = f"no all-reduce over all {sum(plan['ranks'])} ranks in time"
            found.append(Finding("fail", "network", text, "run it again with NCCL_DEBUG=INFO"))
        findings += found
    skews, bandwidths = findings_of.clock_skews(offsets), findings_of.best_bandwidths(pairs)
    print(machine_table(facts, machines.count, skews, bandwidths))
    print(*findings, _all_reduce_line(facts, rendezvous.read("all")), sep="\n")
    return all(finding.level != "fail" for finding in findings)


def _post_visible(rendezvous: Rendezvous, folder: Path, plan: Mapping[str, Any]) -> None:
    """Which machines' files this one sees; a shared file system may show them late."""
    deadline = time.monotonic() + FOLDER_SECONDS
    while True:
        seen = [node for node, nonce in plan["nonces"].items() if (folder / nonce).exists()]
        if len(seen) == len(plan["nonces"]) or time.monotonic() > deadline:
            break
        with contextlib.suppress(OSError):
            list(folder.iterdir())  # opening the folder makes NFS look again
        time.sleep(0.1)
    rendezvous.post("sees", seen)


def _all_reduce_line(facts: Facts, result: Mapping[str, Any] | None) -> str:
    """`result` of `cluster_check` over all ranks; None where it was not measured."""
    if result is None:
        return "all-reduce: not measured"
    num_ranks = sum(own["ranks"] for own in facts.values())
    if num_ranks == 1:
        return "all-reduce: one rank has nothing to exchange"
    return (
        f"all-reduce: {num_ranks} ranks, {result['size'] / 2**20:.0f} MiB in "
        f"{1000 * result['seconds']:.3g} ms, bus bandwidth {result['bandwidth'] / GIGABYTE:.3g} GB/s"
    )


def _run_ranks(
    rendezvous: Rendezvous, plan: Mapping[str, Any], machines: Machines, num_gpus: int
) -> list[str]:
    """Runs this machine's ranks until they end, one fails, another machine's fail, or time is up; kills the
    rest. Returns what was wrong."""
    from plast_train.runtime.cluster_check import FAILED, RankSpec

    child = [sys.executable, "-m", "launcher.processes.child", "plast_train.runtime.cluster_check"]
    environment = rank_environment(plan["ranks"][machines.rank], num_gpus)
    deadline = time.monotonic() + plan["start_seconds"] + EXCHANGE_SECONDS
    with tempfile.TemporaryDirectory(prefix="plast-doctor-") as folder, contextlib.ExitStack() as started:
        logs: list[Path] = []
        ranks: list[subprocess.Popen[bytes]] = []
        for number in range(plan["ranks"][machines.rank]):
            spec = RankSpec(
                address=machines.address or "127.0.0.1",
                port=plan["port"],
                node=machines.rank,
                counts=plan["ranks"],
                local_rank=number,
                start_seconds=plan["start_seconds"],
            )
            logs.append(Path(folder, str(number)))
            with logs[-1].open("wb") as log:
                rank = subprocess.Popen(
                    [*child, json.dumps(asdict(spec))],
                    env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                )  # fmt: skip
            started.callback(rank.wait)
            started.callback(rank.kill)  # called before `wait`
            ranks.append(rank)
        while True:
            codes = [rank.poll() for rank in ranks]
            elsewhere = rendezvous.read(FAILED)
            if None not in codes or any(codes) or elsewhere or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        errors = []
        for number, code in enumerate(codes):
            if code:
                said = last_line(logs[number].read_text(encoding="utf-8", errors="replace"))
                errors.append(f"local rank {number}: {said or f'exit code {code}'}")
        if not errors and not elsewhere:
            errors = [f"local rank {number} did not end" for number, code in enumerate(codes) if code is None]
        if errors:
            rendezvous.announce(FAILED, True)
        return errors


def last_line(text: str) -> str:
    """Of a rank's output; of a traceback the error, which torch may follow with native frames."""
    lines = [line for line in text.splitlines() if line.strip()]
    return ([line for line in lines if _ERROR.match(line)] or lines or [""])[-1]


def _absent_findings(facts: Facts, machines: Machines, wait: int) -> Iterator[Finding]:
    names = slurm_hosts(machines)
    present = ", ".join(findings_of.label(node, facts) for node in sorted(facts))
    for node in (node for node in range(machines.count) if node not in facts):
        name = f"node {node + 1} of {machines.count} ({f'{names[node]}, ' if names else ''}NODE_RANK={node})"
        leave_out = f", or leave it out (sbatch --exclude={names[node]})" if names else ""
        remedy = f"look at that machine's own output{leave_out}"
        text = f"{name} did not connect within {wait} s; connected: {present}"
        yield Finding("fail", f"node {node + 1}", text, remedy)


def slurm_hosts(machines: Machines) -> list[str]:
    """The nodes of this job in their order; empty outside Slurm."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes or shutil.which("scontrol") is None:
        return []
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True)
    hosts = listed.stdout.split()
    return hosts if len(hosts) == machines.count else []
