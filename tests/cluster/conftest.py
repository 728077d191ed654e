"""One cluster of four nodes for all tests of this folder, and jobs in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs import ROOT, Submitter
from support.minicluster import Cluster, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := missing():
        pytest.skip(why)
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with Cluster(tmp_path_factory.mktemp("cluster") / "slurm", 4) as started:
        yield started


@pytest.fixture(autouse=True)
def _empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a job to the next one."""
    yield
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        for number in cluster.run("squeue", "-h", "-o", "%A").split():
            cluster.run("scancel", number, check=False)
        cluster.wait_for_idle()


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Submitter:
    """Jobs with the installed program."""
    return Submitter(cluster, tmp_path, Path(sys.prefix))


@pytest.fixture
def submit_standin(cluster: Cluster, tmp_path: Path) -> Submitter:
    """Jobs with tests/cluster/standin.py in the place of `plast`."""
    program = tmp_path / "environment" / "bin" / "plast"
    program.parent.mkdir(parents=True)
    standin = ROOT / "tests" / "support" / "standin.py"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {standin} "$@"\n')
    program.chmod(0o755)
    return Submitter(cluster, tmp_path, program.parent.parent)
