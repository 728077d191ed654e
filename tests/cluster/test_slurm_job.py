"""The job script in a real Slurm, with a stand-in for `plast`: when a job goes on by itself and when not."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
from support.jobs import ROOT, Job, Submitter
from support.minicluster import Cluster


@pytest.mark.parametrize("script", ["plast_7b.sh", "plast_13b.sh"])
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_slurm_accepts_the_script(cluster: Cluster, script: str, nodes: int) -> None:
    options = [f"--nodes={nodes}", "--gpus-per-node=8", "--time=1-00:00:00", f"--chdir={ROOT}"]
    said = cluster.run("sbatch", "--test-only", *options, ROOT / "slurm" / script)
    assert f"using {16 * nodes} processors" in said
    with pytest.raises(RuntimeError):
        cluster.run("sbatch", "--test-only", "--nodes=5", ROOT / "slurm" / script)


def finish(job: Job) -> None:
    (job.run / "finish").touch()
    job.wait_for("COMPLETED", seconds=60)


def starts(job: Job) -> list[list[str]]:
    """Of each start: node, nodes, restart, meeting point, arguments; in order of restart and node."""
    return sorted((line.split("|") for line in job.lines("starts")), key=lambda start: (start[2], start[0]))


def begun(job: Job, restart: int = 0, seconds: float = 60) -> Job:
    """Waits until both nodes have begun (again)."""
    job.wait_for_lines("starts", 2 * restart + 2, seconds)
    assert [start[2] for start in starts(job)] == [str(n) for n in range(restart + 1) for _ in range(2)]
    return job


def test_one_task_a_node_with_what_the_variables_say(submit_standin: Submitter) -> None:
    overrides = "train.max_steps=3 'train.instruction=say \"$HOME\" {question}' data.languages=[en,pt]"
    job = begun(submit_standin(OVERRIDES=overrides, NPROC="3"))
    first, second = starts(job)
    port = 10000 + int(job.number) % 20000
    assert first[:4] == ["0", "2", "0", f"n1:{port}"] and second[:4] == ["1", "2", "0", f"n1:{port}"]
    wanted = ["run", "tiny", "--out", str(job.run), "--nproc", "3", "train.max_steps=3"]
    wanted += ['train.instruction=say "$HOME" {question}', "data.languages=[en,pt]"]
    assert first[4:] == second[4:] == wanted
    finish(job)
    assert job.said().rstrip().endswith("done")


def test_gpus_decide_the_ranks(submit_standin: Submitter) -> None:
    job = begun(submit_standin("--gpus-per-node=4", NPROC=""))
    assert starts(job)[0][8:10] == ["--nproc", "4"]
    finish(job)
    job = submit_standin(NPROC="")
    job.wait_for("FAILED", seconds=60)
    assert "--gpus-per-node" in job.said()


def test_the_kept_script_submits_the_same_again(submit_standin: Submitter, tmp_path: Path) -> None:
    recipe = tmp_path / "my recipe.yaml"
    shutil.copy(ROOT / "plast_train" / "recipes" / "tiny.yaml", recipe)
    options = ("--nodes=3", "--partition=low", "--gpus-per-node=2", "--job-name=a 'job'")
    job = submit_standin(*options, RECIPE=str(recipe), OVERRIDES="'a.b=c d'", NPROC="")
    job.wait_for_lines("starts", 3, 30)
    finish(job)
    before, slurm_before = starts(job), job.cluster.job(job.number)
    recipe.unlink()
    (job.run / "starts").unlink()
    for _ in range(2):  # the copy of a copy too
        number = job.cluster.run("sbatch", "--parsable", job.run / "job" / "a 'job'.sh").strip()
        slurm_after = job.cluster.wait_for_state(number, "COMPLETED", seconds=60)
        (ROOT / f"a 'job'-{number}.out").unlink()
        after = starts(job)
        assert [start[:3] for start in after] == [start[:3] for start in before]
        assert after[0][4:] == [*before[0][4:5], str(job.run / "job" / "recipe.yaml"), *before[0][6:]]
        for name in ("NumNodes", "Partition", "TimeLimit", "JobName", "WorkDir", "CPUs/Task"):
            assert slurm_after[name] == slurm_before[name]
        (job.run / "starts").unlink()


def test_a_restarted_job_keeps_its_recipe(
    submit_standin: Submitter, cluster: Cluster, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("as submitted")
    job = begun(submit_standin(RECIPE=str(recipe)))
    recipe.write_text("edited for the next job")
    cluster.run("scontrol", "requeue", job.number)
    finish(begun(job, restart=1))
    kept = job.run / "job" / "recipe.yaml"
    assert [start[5] for start in starts(job)] == [str(recipe)] * 2 + [str(kept)] * 2
    assert kept.read_text() == "as submitted"


def test_a_run_folder_in_use_is_left_alone(submit_standin: Submitter) -> None:
    lock = submit_standin.folder / "run" / ".lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("whoever works here")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1):
            lock.touch()

    owner = threading.Thread(target=beat)
    owner.start()
    job = submit_standin()
    job.wait_for("FAILED", seconds=60)
    ended.set()
    owner.join()
    assert "another plast works there" in job.said()
    assert list(job.run.iterdir()) == [lock]
    finish(begun(submit_standin()))  # what is left of a dead one's lock is no hindrance


def test_time_limit(submit_standin: Submitter) -> None:
    # The signal is due after a minute and can come a minute early.
    job = begun(submit_standin("--time=2", "--signal=B:USR2@60"))
    begun(job, restart=1, seconds=120)
    assert {line.split()[0] for line in job.lines("signals")} == {"SIGUSR2"}
    assert "SIGUSR2 came" in job.said() and "restarts itself: stopped by SIGUSR2" in job.said()
    finish(job)


def test_time_limit_before_the_ranks_have_saved(submit_standin: Submitter) -> None:
    job = begun(submit_standin("--time=1", "--signal=B:USR1@50"))
    (job.run / "deaf").touch()
    begun(job, restart=1, seconds=120)
    assert "restarts itself: the time limit came before the ranks had saved" in job.said()
    (job.run / "deaf").unlink()
    finish(job)


def preempt(job: Job) -> str:
    """A job of higher priority that wants all nodes. Returns its number."""
    command = ["sbatch", "--parsable", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    return job.cluster.run(*command).strip()


def test_preemption_with_grace(submit_standin: Submitter) -> None:
    job = begun(submit_standin("--partition=low"))
    other = preempt(job)
    job.wait_for_word("restarts itself: stopped by SIGTERM", 60)
    job.cluster.wait_for_state(other, "COMPLETED", seconds=90)
    finish(begun(job, restart=1))


def test_preemption_without_grace(submit_standin: Submitter) -> None:
    job = begun(submit_standin("--partition=low0"))
    other = preempt(job)
    job.cluster.wait_for_state(other, "COMPLETED", seconds=90)
    finish(begun(job, restart=1))


@pytest.mark.parametrize("lost", ["n1", "n2"])
def test_a_node_is_lost(submit_standin: Submitter, cluster: Cluster, lost: str) -> None:
    """n1 runs the job script, which lives on as an orphan and must leave the restarted job alone."""
    job = begun(submit_standin())
    assert cluster.job(job.number)["NodeList"] == "n[1-2]"
    cluster.kill_node(lost)
    try:
        begun(job, restart=1, seconds=90)
        time.sleep(5)
        finish(job)
        assert cluster.job(job.number)["Restarts"] == "1"
    finally:
        cluster.start_node(lost)


def test_an_operator_requeues(submit_standin: Submitter, cluster: Cluster) -> None:
    job = begun(submit_standin())
    cluster.run("scontrol", "requeue", job.number)
    finish(begun(job, restart=1))
    assert cluster.job(job.number)["Restarts"] == "1"


@pytest.mark.parametrize("how", [(), ("--full", "--signal=USR1"), ("--batch", "--signal=USR1")])
def test_cancelled_stays_cancelled(submit_standin: Submitter, cluster: Cluster, how: tuple[str, ...]) -> None:
    job = begun(submit_standin())
    if how:  # first a signal that asks for a restart, then the end, while ranks save
        (job.run / "deaf").touch()
        cluster.run("scancel", *how, job.number)
        job.wait_for_lines("signals", 1, 20)
        (job.run / "logs" / "again").write_text("stopped\n")
    cluster.run("scancel", job.number)
    job.wait_for("CANCELLED", seconds=90)  # COMPLETING before
    time.sleep(10)  # longer than KillWait
    assert cluster.job(job.number)["JobState"] == "CANCELLED"
    assert len(starts(job)) == 2


def test_restarts_are_capped(submit_standin: Submitter, cluster: Cluster) -> None:
    job = begun(submit_standin(MAX_RESTARTS="1"))
    for restart in range(2):
        begun(job, restart)
        cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_for("FAILED", seconds=60)
    assert "not restarted: 1 restarts are the most" in job.said()
    assert len(starts(job)) == 4


def test_restarts_by_slurm_itself_are_capped(submit_standin: Submitter, cluster: Cluster) -> None:
    job = begun(submit_standin(MAX_RESTARTS="0"))
    cluster.run("scontrol", "requeue", job.number)
    job.wait_for("FAILED", seconds=60)
    assert "restarted 1 times, PLAST_MAX_RESTARTS=0" in job.said()
    assert len(starts(job)) == 2


def test_a_failure_that_asks_for_no_restart_ends_the_job(submit_standin: Submitter) -> None:
    job = begun(submit_standin())
    (job.run / "fail-0").touch()
    job.wait_for("FAILED", seconds=60)
    assert "ends with exit code 1; nothing asks for a restart" in job.said()


def test_a_cancelled_step_is_no_success(submit_standin: Submitter, cluster: Cluster) -> None:
    job = begun(submit_standin())
    (job.run / "deaf").touch()
    cluster.run("scancel", f"{job.number}.0")
    job.wait_for("FAILED", seconds=90)
    assert "done" not in job.said()


def test_the_first_node_can_say_why_another_failed(submit_standin: Submitter) -> None:
    """srun ends all tasks with the first that fails: the first node's gets the time to write it down."""
    job = begun(submit_standin())
    (job.run / "fail-1").touch()
    time.sleep(2)
    assert not (job.run / "logs" / "again").exists()
    (job.run / "logs" / "again").write_text("a rank of node 1 failed\n")
    (job.run / "fail-0").touch()
    job.wait_for_word("restarts itself: a rank of node 1 failed", 30)


def test_the_check_of_the_nodes_comes_first(submit_standin: Submitter) -> None:
    job = submit_standin(DOCTOR="1")
    job.wait_for_lines("starts", 2, 60)
    assert starts(job)[0][4:] == ["doctor", "--distributed", "--out", str(job.run), "--nproc", "1"]
    (job.run / "fail-1").touch()
    job.wait_for("FAILED", seconds=90)
    assert "the check of the nodes failed" in job.said()
    assert len(starts(job)) == 2


def test_a_failed_check_of_a_restarted_job_is_tried_again(
    submit_standin: Submitter, cluster: Cluster
) -> None:
    job = submit_standin(DOCTOR="1")
    job.wait_for_lines("starts", 2, 60)
    cluster.run("scontrol", "requeue", job.number)
    job.wait_for_lines("starts", 4, 90)
    (job.run / "fail-1").touch()
    job.wait_for_word("restarts itself: the check of the nodes failed", 60)
    (job.run / "fail-1").unlink()
    job.wait_for_lines("starts", 6, 90)
    finish(job)


def test_a_signal_during_the_check(submit_standin: Submitter, cluster: Cluster) -> None:
    job = submit_standin(DOCTOR="1")
    job.wait_for_lines("starts", 2, 60)
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_for_word("restarts itself", 60)
    job.wait_for_lines("starts", 4, 60)
