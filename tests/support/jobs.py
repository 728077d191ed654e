"""Jobs in the cluster, as a user submits them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from support.minicluster import Cluster, wait_until

ROOT = Path(__file__).parents[2]


@dataclass
class Job:
    """A submitted job. `log` is what it printed, `run` its run folder."""

    cluster: Cluster
    number: str
    log: Path
    run: Path

    def wait_for(self, *states: str, seconds: float) -> dict[str, str]:
        return self.cluster.wait_for_state(self.number, *states, seconds=seconds)

    def lines(self, name: str) -> list[str]:
        """Of a file in the run folder; none if it is not there yet."""
        path = self.run / name
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_lines(self, name: str, count: int, seconds: float) -> None:
        wait_until(
            lambda: len(self.lines(name)) >= count,
            seconds,
            lambda: f"{self.run / name}: {self.lines(name)}\n{self.said()}",
        )

    def wait_for_word(self, word: str, seconds: float) -> None:
        """Waits until the job has said it."""
        wait_until(lambda: word in self.said(), seconds, lambda: f"no '{word}' in:\n{self.said()}")

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Submitter:
    """Submits slurm/plast_13b.sh with the variables set as a user would."""

    def __init__(self, cluster: Cluster, folder: Path, plast: Path) -> None:
        self.cluster, self.folder, self.plast = cluster, folder, plast

    def __call__(self, *options: str, run: Path | None = None, **variables: str) -> Job:
        run = run or self.folder / "run"
        run.mkdir(parents=True, exist_ok=True)
        log = self.folder / "%j.out"
        given = {"RECIPE": "tiny", "RUN": str(run), "ENV": str(self.plast), "NPROC": "1", "DOCTOR": "0"}
        given |= variables
        words = [f"PLAST_{name}={value}" for name, value in given.items()]
        sbatch = ["sbatch", "--parsable", f"--chdir={ROOT}", f"--output={log}", "--nodes=2", "--time=60"]
        number = self.cluster.run("env", *words, *sbatch, *options, ROOT / "slurm" / "plast_13b.sh").strip()
        return Job(self.cluster, number, Path(str(log).replace("%j", number)), run)
