"""`plast doctor --distributed`: what it says of machines, and several launchers on this one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.paths import ROOT

from launcher.doctor.machines import slurm_hosts
from launcher.processes.torchrun import Machines

# From here on: real launchers on this machine, each a node.

# What a test does to one of them, by environment, before any of the program's code runs.
SITE = """
import os, sys, time
if os.environ.get("TEST_CLOCK_AHEAD"):
    right = time.time
    time.time = lambda: right() + float(os.environ["TEST_CLOCK_AHEAD"])
if os.environ.get("TEST_RANKS_FAIL") and "plast_train.runtime.cluster_check" in sys.orig_argv:
    print("OSError: this rank has lost its GPU", file=sys.stderr, flush=True)
    os._exit(1)
"""


class Nodes:
    """Launchers of the doctor, as on `count` machines."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE)
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._started: dict[int, subprocess.Popen[str]] = {}

    def start(
        self, node: int, *options: str, out: str = "RUN", root: Path = ROOT, **environment: str
    ) -> None:
        """Starts the doctor of one node, with the program at `root`."""
        variables = {"NNODES": str(self.count), "NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1"}
        variables |= {"MASTER_PORT": str(self.port), "OMP_NUM_THREADS": "1", **environment}
        variables |= {"PYTHONPATH": os.pathsep.join([str(self.folder / "site"), str(root)])}
        command = [sys.executable, "-m", "launcher.cli", "doctor", "--distributed", "--nproc", "1"]
        self._started[node] = subprocess.Popen(
            [*command, "--out", str(self.folder / out), *options],
            env={**os.environ, **variables},
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[dict[int, int], dict[int, str]]:
        """Exit codes and outputs by node."""
        outputs = {node: "".join(started.communicate(timeout=600)) for node, started in self._started.items()}
        return {node: started.returncode for node, started in self._started.items()}, outputs


@pytest.mark.slow
def test_sound_machines_are_fit(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 2)
    for node in (1, 0):
        nodes.start(node, "--nproc", "2" if node else "1")
    codes, outputs = nodes.end()
    assert codes == {0: 0, 1: 0}, outputs
    assert outputs[1] == ""
    lines = outputs[0].splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["node", "1", "2"]
    assert lines[-2].startswith("all-reduce: 3 ranks") and "bus bandwidth" in lines[-2]
    seconds = re.fullmatch(r"2 machines: fit for a run \((\d+\.\d) s\)", lines[-1])
    assert seconds is not None and float(seconds[1]) < 60, lines[-1]
    assert "fail" not in outputs[0]
    assert not (tmp_path / "RUN").exists()


@pytest.mark.slow
def test_each_bad_machine_of_three_is_named(tmp_path: Path) -> None:
    for package in ("launcher", "plast_train", "ds_configs"):
        shutil.copytree(ROOT / package, tmp_path / "copy" / package)
    with (tmp_path / "copy" / "launcher" / "table.py").open("a") as file:
        file.write("# changed\n")
    nodes = Nodes(tmp_path, 3)
    nodes.start(1, root=tmp_path / "copy", TEST_CLOCK_AHEAD="300")
    nodes.start(2, out="another/RUN", GLOO_SOCKET_IFNAME="nosuch0")
    nodes.start(0)
    codes, outputs = nodes.end()
    assert codes == {0: 2, 1: 2, 2: 2}, outputs
    wrong = [line for line in outputs[0].splitlines() if line.startswith("fail")]
    assert {line[6:17] for line in wrong} == {"node 2 (" + wrong[0][14:17], "node 3 (" + wrong[0][14:17]}
    said = outputs[0]
    for text in (
        "launcher/table.py differ",
        "its clock is 300.0 s ahead",
        "the run folder is not shared",
        "GLOO_SOCKET_IFNAME must name an interface",
    ):
        assert text in said
    assert "the first machine's output says why" in outputs[1]


@pytest.mark.slow
def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 3)
    for node in (2, 0):
        nodes.start(node, "--wait", "20")
    codes, outputs = nodes.end()
    host = socket.gethostname()
    assert codes == {0: 2, 2: 2}, outputs
    text = (
        f"node 2 of 3 (NODE_RANK=1) did not connect within 20 s; connected: node 1 ({host}), node 3 ({host})"
    )
    assert text in outputs[0]
    assert "not shared" not in outputs[0]


@pytest.mark.slow
def test_the_others_say_that_the_first_did_not_come(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 3)
    for node in (1, 2):
        nodes.start(node, "--wait", "10")
    codes, outputs = nodes.end()
    assert codes == {1: 2, 2: 2}, outputs
    for node in (1, 2):
        assert (
            f"node 1 of 3 (NODE_RANK=0) did not answer at 127.0.0.1:{nodes.port} within 10 s" in outputs[node]
        )


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_found_though_a_machine_is_missing(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 3)
    nodes.start(1, "--wait", "30", out="another/RUN")
    nodes.start(0, "--wait", "30")
    codes, outputs = nodes.end()
    assert codes == {0: 2, 1: 2}, outputs
    assert "node 3 of 3 (NODE_RANK=2) did not connect" in outputs[0]
    assert "the run folder is not shared" in outputs[0]


@pytest.mark.slow
def test_a_rank_that_fails_on_one_machine(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 2)
    nodes.start(1, TEST_RANKS_FAIL="1")
    nodes.start(0)
    codes, outputs = nodes.end()
    assert codes == {0: 2, 1: 2}, outputs
    assert "all-reduce: local rank 0: OSError: this rank has lost its GPU" in outputs[0]
    assert "node 2" in next(line for line in outputs[0].splitlines() if line.startswith("fail"))


@pytest.mark.slow
def test_a_taken_port_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 2)
    (tmp_path / "file").write_text("")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", nodes.port))
        taken.listen()
        nodes.start(0, "--wait", "5")
        codes, outputs = nodes.end()
    assert codes == {0: 2} and f"port {nodes.port}" in outputs[0] and "MASTER_PORT" in outputs[0]
    (tmp_path / "alone").mkdir()
    nodes = Nodes(tmp_path / "alone", 1)
    nodes.start(0, out="../file/RUN")
    codes, outputs = nodes.end()
    assert codes == {0: 2} and "cannot write in" in outputs[0] and "Not a directory" in outputs[0]


def test_slurm_names_who_did_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n[ \"$*\" = 'show hostnames n[1-2]' ] && printf 'n1\\nn2\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    assert slurm_hosts(Machines(2, 0, "n1")) == ["n1", "n2"]
    assert slurm_hosts(Machines(3, 0, "n1")) == []
