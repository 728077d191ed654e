"""A real Slurm cluster of several nodes on one machine, for tests.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge. By hand:

    python tests/support/minicluster.py DIR --nodes 4      # until Ctrl-C
    DIR/on login sbatch slurm/plast_13b.sh                  # a command on the login node
    DIR/on n1 hostname                                      # or on a node

A node is a slurmd with a host name and a loopback address of its own and eight GPUs that are none. All nodes
see this machine's files. Partitions: `gpu` (default), `low` (its jobs give way to those of `gpu` after 20 s)
and `low0` (at once).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
GPUS = 8
# CPUs that a node says it has; a job that asks for more than half keeps others off it.
CPUS = 64

CONFIGURATION = """
ClusterName=mini
SlurmctldHost=ctl({addresses[ctl]})
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge/socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=3,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
{nodes}
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=low0 Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
"""

# A host name and a hosts file of its own; ends with the process that started it.
ON = """#!/bin/sh
export SLURM_CONF={folder}/slurm.conf
exec unshare --uts --mount \\
  sh -c 'hostname "$1"; mount --bind {folder}/hosts /etc/hosts; shift; exec "$@"' sh "$@"
"""


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "a Slurm cluster needs root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"no {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)" if absent else ""


class Cluster:
    """`folder` must be new, and its path short and free of blanks; `count` nodes n1, n2, …"""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.nodes = folder, [f"n{number}" for number in range(1, count + 1)]
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._namespaces: set[Path] = set()

    def __enter__(self) -> Cluster:
        self._configure()
        try:
            munge = self.folder / "munge"
            options = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid"}
            paths = [f"--{name}={munge / file}" for name, file in options.items()]
            self._start("munged", ["munged", "--foreground", "--force", f"--seed-file={munge}/seed", *paths])
            wait_until(lambda: (munge / "socket").exists(), 10, "munged has not started")
            self._start("ctl", [str(self.folder / "on"), "ctl", "slurmctld", "-D", "-i"])
            for node in self.nodes:
                self.start_node(node)
            wait_until(self._is_ready, 30, "the nodes are not ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        """Ends every process of this cluster: daemons, steps, and ranks that a killed daemon left behind."""
        for node in self.nodes:
            self._note_namespace(node)
        while ours := [process for process in psutil.process_iter() if self._owns(process)]:
            for process in ours:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            for daemon in self.daemons.values():
                daemon.poll()
            time.sleep(0.1)
        self.daemons["munged"].kill()
        self.daemons["munged"].wait()

    def _owns(self, process: psutil.Process) -> bool:
        """Known by its environment, or, as slurmstepd overwrites its own, by its node's mount namespace."""
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                return False
            if process.environ().get("SLURM_CONF") == f"{self.folder}/slurm.conf":
                return True
            return _namespace(process.pid) in self._namespaces
        return False

    def _note_namespace(self, node: str) -> None:
        with contextlib.suppress(KeyError, OSError):
            self._namespaces.add(_namespace(self.daemons[node].pid))
        self._namespaces.discard(_namespace(os.getpid()))

    def start_node(self, node: str) -> None:
        self._start(node, [str(self.folder / "on"), node, "slurmd", "-D", "-N", node])

    def kill_node(self, node: str) -> None:
        """As if the node's slurmd had crashed: its steps stay."""
        self._note_namespace(node)
        self.daemons[node].kill()
        self.daemons[node].wait()

    def run(self, *command: str | Path, check: bool = True) -> str:
        """What a command on the login node prints."""
        done = subprocess.run(
            [self.folder / "on", "login", *command],
            env=_outside_slurm(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{shlex.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job, e.g. JobState, Restarts, BatchHost."""
        words = self.run("scontrol", "-o", "show", "job", number).split()
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def wait_for_state(self, number: str, *states: str, seconds: float) -> dict[str, str]:
        """Waits until the job is in one of the states."""
        wait_until(
            lambda: self.job(number)["JobState"] in states,
            seconds,
            lambda: f"job {number} is not {states}: {self.job(number)}\n{self.run('sinfo')}",
        )
        return self.job(number)

    def wait_for_idle(self, seconds: float = 60) -> None:
        """Waits until nothing runs or is about to, and all nodes are there."""
        wait_until(
            lambda: self._is_ready() and not self.run("squeue", "-h").strip(),
            seconds,
            lambda: self.run("squeue") + self.run("sinfo", "-N"),
        )

    def _is_ready(self) -> bool:
        idle = self.run("sinfo", "-h", "-N", "-p", "gpu", "-t", "idle", "-o", "%N", check=False)
        return idle.split() == self.nodes

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=_outside_slurm(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _configure(self) -> None:
        folder, ports = self.folder, free_ports(len(self.nodes) + 1)
        for name in ("state", "spool", "munge", "gpu"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)  # munged wants to be sure who can reach its socket
        (folder / "munge").chmod(0o711)
        (folder / "munge" / "key").write_bytes(os.urandom(128))
        (folder / "munge" / "key").chmod(0o400)
        for number in range(GPUS):  # must be character devices; these are /dev/null
            os.mknod(folder / "gpu" / f"gpu{number}", 0o20600, os.makedev(1, 3))
        names = ["ctl", "login", *self.nodes]
        addresses = {name: f"127.0.77.{number}" for number, name in enumerate(names, 1)}
        lines = [f"{address} {name}" for name, address in addresses.items()]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        nodes = [
            f"NodeName={node} NodeAddr={addresses[node]} Port={port} CPUs={CPUS} RealMemory=1000000 "
            f"Gres=gpu:h100:{GPUS}"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        configuration = CONFIGURATION.format(
            addresses=addresses, folder=folder, port=ports[0], nodes="\n".join(nodes)
        )
        (folder / "slurm.conf").write_text(configuration)
        gpus = f"File={folder}/gpu/gpu[0-{GPUS - 1}]"
        all_nodes = ",".join(self.nodes)
        (folder / "gres.conf").write_text(f"NodeName={all_nodes} Name=gpu Type=h100 {gpus}\n")
        (folder / "on").write_text(ON.format(folder=folder))
        (folder / "on").chmod(0o755)


def wait_until(happened: Callable[[], bool], seconds: float, otherwise: str | Callable[[], str]) -> None:
    """Raises TimeoutError, saying `otherwise`, if it has not happened in time."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(otherwise if isinstance(otherwise, str) else otherwise())
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def _namespace(process: int) -> Path:
    return Path(f"/proc/{process}/ns/mnt").readlink()


def _outside_slurm() -> dict[str, str]:
    """This environment without what a surrounding job would leave in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=4)
    arguments = parser.parse_args()
    if why := missing():
        sys.exit(why)
    with Cluster(arguments.folder.resolve(), arguments.nodes) as cluster:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        print(f"ready: {cluster.folder}/on login COMMAND…", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
