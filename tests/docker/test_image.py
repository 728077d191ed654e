"""The image as a user has it: who runs in it, what it holds, and that a stopped run goes on elsewhere."""

from __future__ import annotations

import json
import signal
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from support.containers import ROOT, Container, Images

pytestmark = pytest.mark.docker

# The image's own user.
USER = 10001
SECONDS_TO_SAVE = 120


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A volume that any user of a container can write to."""
    folder = tmp_path / "runs"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def steps(run: Path) -> list[int]:
    """The steps in metrics.jsonl."""
    path = run / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(container: Container, run: Path, step: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while step not in steps(run):
        assert time.monotonic() < end, container.said()
        time.sleep(0.5)


def test_description(images: Images) -> None:
    """Entry point, user, volumes, health check and labels are what README and compose.yaml count on."""
    config = images.inspect()["Config"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert config["Entrypoint"] == ["tini", "--", "plast"]
    assert config["User"] == f"{USER}:{USER}"
    assert set(config["Volumes"]) == {"/data", "/models", "/runs"}
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["plast"]
    assert {volume["target"] for volume in compose["volumes"]} == set(config["Volumes"])
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["version"] == project["version"]
    assert labels["description"] == project["description"]
    assert labels["licenses"] == project["license"]


def test_size(images: Images) -> None:
    """The README states it: 1.62 GB."""
    assert images.inspect()["Size"] < 1.7e9


def test_contents(images: Images, runs: Path) -> None:
    """No compiler, no pip, nothing of the machine that built it."""
    # Where the build was lent this machine's packages, empty places are left.
    looks = (
        "! command -v gcc && ! command -v g++ && ! command -v pip",
        "! grep -s . /etc/pip.conf",
        "test -z \"$(find / -xdev -name '*.whl' -not -path '/usr/*')\"",
    )
    container = images.start("contents", runs, "-c", " && ".join(looks), options=["--entrypoint=sh"])
    assert container.wait() == 0, container.said()


def test_versions_are_locked(images: Images, runs: Path) -> None:
    code = """
from importlib.metadata import distributions
for found in distributions(path=["/opt/venv/lib/python3.11/site-packages"]):
    print(found.name + "==" + found.version.partition("+")[0])
"""
    container = images.start("versions", runs, "-c", code, options=["--entrypoint=/opt/venv/bin/python"])
    assert container.wait() == 0, container.said()
    locked = (ROOT / "constraints.txt").read_text().lower().splitlines()
    installed = container.said().lower().split()
    assert len(installed) > 50
    assert set(installed) <= set(locked)


def test_any_user(images: Images, runs: Path) -> None:
    """One without a name in the image, as for a run folder that belongs to somebody on the host."""
    container = images.start("any-user", runs, "plan", "tiny", options=["--user=4321:4321"])
    assert container.wait() == 0, container.said()
    assert {path.stat().st_uid for path in runs.rglob("*")} == {4321}


def test_stop_before_the_ranks_start(images: Images, runs: Path) -> None:
    """Process 1 gets no signal that it does not handle: without tini this would wait for SIGKILL."""
    container = images.start("early", runs, "demo", "--out", "demo")
    time.sleep(0.5)
    container.stop(SECONDS_TO_SAVE)
    assert container.wait() in (1, 128 + signal.SIGTERM), container.said()
    assert not list(runs.glob("demo/stages/*"))


def test_stopped_run_goes_on_in_another_container(images: Images, runs: Path) -> None:
    run = runs / "demo"
    first = images.start("first", runs, "demo", "--out", "demo", options=["--env=PLAST_RUN=/runs/demo"])
    wait_for_step(first, run, 20, seconds=600)
    assert first.run("cat", "/proc/1/comm") == "tini"
    health: list[str] = images.inspect()["Healthcheck"]["Test"]
    assert health[0] == "CMD"
    first.run(*health[1:])
    first.stop(SECONDS_TO_SAVE)
    assert first.wait() == 1
    assert "saved in /runs/demo/checkpoints/step-" in first.said(), first.said()
    stopped_at = steps(run)[-1]
    assert 20 <= stopped_at < 100  # before the recipe's own first checkpoint
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == [f"step-{stopped_at:08d}"]

    second = images.start("second", runs, "demo", "--out", "demo")
    assert second.wait() == 0, second.said()
    assert "collect: done before, skipped" in second.said()
    assert steps(run) == list(range(1, 201))
    assert (run / "report" / "index.html").is_file()
    assert {path.stat().st_uid for path in runs.rglob("*")} == {USER}
