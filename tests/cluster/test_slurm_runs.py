"""Real runs on two nodes of a Slurm cluster: whatever interrupts one, it ends with the very weights of a run
that nothing interrupted."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.jobs import Job, Submitter
from support.minicluster import Cluster, wait_until

from plast_train.stages import STAGES

STEPS = 30
OVERRIDES = [
    *("data.languages=[en,pt]", "probe.records=20", "evaluate.benchmarks=[tiny-world/tiny_pt.tsv]"),
    *(f"train.max_steps={STEPS}", "train.global_batch=8", "train.validation_records=4"),
    "checkpoint.every_steps=5",
]
# What a run has from `train` on, and what tells of its launches.
FROM_TRAINING = (
    "train.json",
    "export.json",
    "evaluate.json",
    "report.json",
    "metrics.jsonl",
    "freezing.json",
)
FROM_TRAINING += (
    "checkpoints",
    "tensorboard",
    "export",
    "evaluation",
    "logs",
    "job",
    "attempts.jsonl",
    ".lock",
)
# For what takes a minute on an idle machine.
SECONDS = 900.0


@pytest.fixture(scope="module")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """All stages on two nodes, never interrupted."""
    submit = Submitter(cluster, tmp_path_factory.mktemp("finished"), Path(sys.prefix))
    job = submit("--gpus-per-node=1", OVERRIDES=" ".join(OVERRIDES), DOCTOR="1")
    job.wait_for("COMPLETED", "FAILED", seconds=2 * SECONDS)
    return job


def test_all_stages_on_two_nodes(finished: Job) -> None:
    assert finished.cluster.job(finished.number)["JobState"] == "COMPLETED", finished.said()
    assert sorted(path.stem for path in (finished.run / "stages").iterdir()) == sorted(STAGES)
    environment = json.loads((finished.run / "environment.json").read_text())
    assert (environment["nproc"], environment["machines"]) == (1, 2)
    assert (finished.run / "logs" / "rank-1.log").exists()
    assert steps(finished) == list(range(1, STEPS + 1))
    assert finished.said().rstrip().endswith("done")


def steps(job: Job) -> list[int]:
    return [json.loads(line)["step"] for line in job.lines("metrics.jsonl")]


def losses(job: Job) -> list[float]:
    return [json.loads(line)["loss"] for line in job.lines("metrics.jsonl")]


def last_checkpoint(job: Job) -> dict[str, bytes]:
    """Weights, moments and the rest of it, as the ranks wrote them."""
    folder = job.run / "checkpoints" / f"step-{STEPS:08d}"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def ranks(job: Job) -> list[psutil.Process]:
    def is_rank(process: psutil.Process) -> bool:
        try:
            return str(job.run) in process.cmdline() and "LOCAL_RANK" in process.environ()
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if is_rank(process)]


@contextmanager
def held_while_training(job: Job) -> Iterator[None]:
    """Inside the block the ranks stand still in the middle of the training, however long Slurm takes."""
    wait_until(lambda: len(steps(job)) >= 7, SECONDS, job.said)
    held = ranks(job)
    assert len(held) == 2
    for rank in held:
        rank.send_signal(signal.SIGSTOP)
    assert len(steps(job)) < STEPS - 3
    yield
    for rank in held:
        if rank.is_running():
            rank.send_signal(signal.SIGCONT)


@pytest.fixture
def training(finished: Job, submit: Submitter, tmp_path: Path) -> Submitter:
    """Submits jobs that train in a copy of the finished run as it was before."""
    ignored = shutil.ignore_patterns(*FROM_TRAINING)
    shutil.copytree(finished.run, tmp_path / "run", ignore=ignored)
    return submit


def begin_training(training: Submitter, *options: str) -> Job:
    return training(*options, OVERRIDES=" ".join(OVERRIDES), STAGES="train")


def went_on_to_the_same_end(job: Job, finished: Job, restarts: int = 1) -> None:
    state = job.wait_for("COMPLETED", "FAILED", seconds=SECONDS)
    assert state["JobState"] == "COMPLETED", job.said()
    assert state["Restarts"] == str(restarts), job.said()
    assert "resumed from" in job.said()
    assert steps(job) == list(range(1, STEPS + 1))
    assert losses(job) == losses(finished)
    expected = last_checkpoint(finished)
    assert len(expected) >= 2 and last_checkpoint(job) == expected


def test_time_limit(training: Submitter, finished: Job) -> None:
    job = begin_training(training)
    with held_while_training(job):
        hours, minutes, _ = map(int, job.cluster.job(job.number)["RunTime"].split(":"))
        # Less than the 120 seconds of --signal are left.
        limit_time(job, 60 * hours + minutes + 2)
        job.wait_for_word("SIGUSR1 came", 120)
    job.wait_for_word("restarts itself: ", SECONDS)
    limit_time(job, 60)  # or a start on a busy machine would take all of the limit
    went_on_to_the_same_end(job, finished)


def limit_time(job: Job, minutes: int) -> None:
    job.cluster.run("scontrol", "update", f"job={job.number}", f"timelimit={minutes}")


def preempt(job: Job) -> None:
    options = ["--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    job.cluster.run("sbatch", "--parsable", *options)


def test_preemption_with_grace(training: Submitter, finished: Job) -> None:
    job = begin_training(training, "--partition=low")
    with held_while_training(job):
        preempt(job)
        wait_until(lambda: any(_is_pending(rank, signal.SIGTERM) for rank in ranks(job)), 30, job.said)
    job.wait_for_word("restarts itself: ", SECONDS)
    went_on_to_the_same_end(job, finished)


def _is_pending(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether the signal has arrived and waits for the process to run; or it is running again."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    state = dict(line.split(":\t", 1) for line in text.splitlines())
    return bool(int(state["ShdPnd"], 16) >> (number - 1) & 1) or state["State"][0] != "T"


def test_preemption_without_grace(training: Submitter, finished: Job) -> None:
    job = begin_training(training, "--partition=low0")
    with held_while_training(job):
        preempt(job)
        job.wait_for("PENDING", seconds=60)
    went_on_to_the_same_end(job, finished)


def test_an_operator_requeues(training: Submitter, finished: Job) -> None:
    job = begin_training(training)
    with held_while_training(job):
        job.cluster.run("scontrol", "requeue", job.number)
        job.wait_for("PENDING", seconds=60)
    went_on_to_the_same_end(job, finished)


@pytest.mark.parametrize("lost", ["n1", "n2"])
def test_a_node_is_lost(training: Submitter, finished: Job, lost: str) -> None:
    """n1's script, `plast` and rank live on, and have the run folder's lock."""
    job = begin_training(training)
    with held_while_training(job):
        job.cluster.kill_node(lost)
        job.wait_for("PENDING", seconds=90)
    try:
        went_on_to_the_same_end(job, finished)
    finally:
        job.cluster.start_node(lost)


def test_cancelled_stays_cancelled(training: Submitter, cluster: Cluster) -> None:
    job = begin_training(training)
    with held_while_training(job):
        cluster.run("scancel", job.number)
    job.wait_for("CANCELLED", seconds=90)
    time.sleep(10)  # longer than KillWait
    state = cluster.job(job.number)
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0"), job.said()


@pytest.mark.parametrize("nproc", [2, 4])
def test_statistics_for_any_ranks_a_node(nproc: int, finished: Job, submit: Submitter) -> None:
    job = submit(OVERRIDES=" ".join(OVERRIDES), STAGES="collect", NPROC=str(nproc))
    job.wait_for("COMPLETED", seconds=2 * SECONDS)
    name = "activations/statistics.safetensors"
    assert (job.run / name).read_bytes() == (finished.run / name).read_bytes()
    assert (job.run / "logs" / f"rank-{2 * nproc - 1}.log").exists()


def submit_chain(cluster: Cluster, run: Path, environment: Path) -> list[Job]:
    """`plast submit`: one node collects, two train."""
    said = cluster.run(
        *("env", "-C", str(run.parent), f"PLAST_ENV={environment}", "PLAST_DOCTOR=0"),
        *(sys.executable, "-m", "launcher.cli", "submit", "tiny", "--out", run, "--nproc", "1"),
        *("--stages", "collect=1,train=2", "--time", "20", *OVERRIDES),
    )
    names = ("plast-tiny-collect", "plast-tiny-train")
    numbers = [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("job ")]
    return [
        Job(cluster, number, run.parent / f"{name}-{number}.out", run)
        for number, name in zip(numbers, names, strict=True)
    ]


def test_a_chain_of_jobs_of_different_sizes(cluster: Cluster, finished: Job, tmp_path: Path) -> None:
    collecting, training = submit_chain(cluster, tmp_path / "run", Path(sys.prefix))
    assert cluster.job(training.number)["JobState"] == "PENDING"
    for job, nodes in ((collecting, "1"), (training, "2")):
        state = job.wait_for("COMPLETED", "FAILED", "CANCELLED", seconds=2 * SECONDS)
        assert (state["JobState"], state["NumNodes"]) == ("COMPLETED", nodes), job.said()
    assert sorted(path.stem for path in (training.run / "stages").iterdir()) == sorted(STAGES)
    assert last_checkpoint(training) == last_checkpoint(finished)
    kept = sorted(path.name for path in (training.run / "job").glob("*.sh"))
    assert kept == ["plast-tiny-collect.sh", "plast-tiny-train.sh"]


def test_a_chain_ends_with_its_first_failure(
    cluster: Cluster, submit_standin: Submitter, tmp_path: Path
) -> None:
    first, second = submit_chain(cluster, tmp_path / "run", submit_standin.plast)
    first.wait_for_lines("starts", 1, 60)
    (first.run / "fail-0").touch()
    first.wait_for("FAILED", seconds=30)
    second.wait_for("CANCELLED", seconds=30)
