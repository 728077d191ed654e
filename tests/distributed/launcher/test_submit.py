"""The job scripts, run by bash: stand-ins for the Slurm programs record what they are called with."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from launcher.cli import main
from launcher.commands.submit import Job, render

SLURM = ROOT / "slurm"


def test_shellcheck_finds_nothing() -> None:
    scripts = sorted(SLURM.glob("*.sh"))
    assert [script.name for script in scripts] == ["job.sh", "plast_13b.sh", "plast_7b.sh"]
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [shellcheck, "--external-sources", *scripts], cwd=SLURM.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def programs(folder: Path, **texts: str) -> Path:
    """A folder of bash scripts."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def run_script(script: str, folder: Path) -> list[list[str]]:
    """Runs a job script with stand-ins for Slurm's programs. Returns the words of each call of srun."""
    take_down = (
        f"printf '%s\\0' \"$@\" >>{folder}/calls; printf '\\n\\0' >>{folder}/calls\necho 0 >\"$ENDED\""
    )
    stubs = programs(
        folder / "stubs",
        srun=take_down,
        squeue="echo '2|gpu|me|normal|1:00:00|(null)|gres:gpu:8'",
        scontrol="echo n1; echo n2",
        plast="",
    )
    (folder / "script").write_text(script)
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "a job", "SLURM_JOB_NODELIST": "n[1-2]"}
    given |= {"SLURM_SUBMIT_DIR": str(SLURM.parent), "SLURM_GPUS_ON_NODE": "8"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PLAST_")}
    path = f"{stubs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", folder / "script"],
        env=environment | given | {"PATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (folder / "calls").read_text().split("\n\0")
    return [call.split("\0")[:-1] for call in calls[:-1]]


HARD = ['train.instruction=it\'s "$HOME" \\n `id` {question}; exit 1', "data.languages=[en,pt]"]


def rendered(folder: Path, **variables: str) -> str:
    values = {
        "PLAST_RECIPE": "tiny",
        "PLAST_OVERRIDES": shlex.join(HARD),
        "PLAST_RUN": f"{folder}/a 'run' $HOME",
        "PLAST_DOCTOR": "0",
        **variables,
    }
    return render(Job("name", ("collect", "select"), 2), {"time": "1-00:00:00"}, values)


def test_values_stay_what_they_are(tmp_path: Path) -> None:
    first, second = run_script(rendered(tmp_path), tmp_path)
    run = f"{tmp_path}/a 'run' $HOME"
    expected = ["plast", "collect", "tiny", "--out", run, "--nproc", "8", *HARD]
    assert first[first.index("plast") :] == expected
    assert second[second.index("plast") + 1] == "select"
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= set(first)
    kept = (Path(run) / "job" / "a job.sh").read_text()
    (tmp_path / "again").mkdir()
    assert run_script(kept, tmp_path / "again") == [first, second]
    assert '#SBATCH --gres="gpu:8"' in kept and kept.count("#SBATCH --time=") == 1


def test_containers(tmp_path: Path) -> None:
    for name, image in (("pyxis", "nvcr.io#team/plast:1"), ("apptainer", "/images/my plast.sif")):
        folder = tmp_path / name
        folder.mkdir()
        script = rendered(folder, PLAST_CONTAINER=image, PLAST_MOUNTS="/data:/data")
        call = run_script(script, folder)[0]
        run = f"{folder}/a 'run' $HOME"
        mounts = f"{folder}:{folder},{run}:{run},/data:/data"
        if name == "pyxis":
            assert f"--container-image={image}" in call and f"--container-mounts={mounts}" in call
            assert call.index("bash") > call.index(f"--container-workdir={folder}")
        else:
            start = call.index("apptainer")
            wanted = ["apptainer", "exec", "--nv", "--bind", mounts, "--pwd", str(folder), image, "plast"]
            assert call[start : start + 9] == wanted


def refusing_third(folder: Path) -> Path:
    sbatch = f'cat >>{folder}/scripts; echo "$*" >>{folder}/calls; n=$(wc -l <{folder}/calls)\n'
    sbatch += '((n < 3)) && echo "$((n + 40));cluster" || { echo "no such account" >&2; exit 1; }'
    return programs(folder / "bin", sbatch=sbatch, scancel=f'echo "cancelled $*" >>{folder}/calls')


def test_a_refused_chain_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{refusing_third(tmp_path)}:{os.environ['PATH']}")
    arguments = ["submit", "tiny", "--out", str(tmp_path / "RUN"), "--stages"]
    assert main([*arguments, "collect=1,train=2"]) == 0
    said = capsys.readouterr().out
    assert "job 41: collect, select on 1 node (" in said and "job 42: run on 2 nodes" in said
    waiting = "--parsable --dependency=afterok:{} --kill-on-invalid-dep=yes"
    assert (tmp_path / "calls").read_text().splitlines() == ["--parsable", waiting.format(41)]
    (tmp_path / "calls").unlink()
    assert main([*arguments, "collect=1,train=2,export=1"]) == 2
    assert "no such account" in capsys.readouterr().err
    assert (tmp_path / "calls").read_text().splitlines()[2:] == [waiting.format(42), "cancelled 41 42"]
    assert not (tmp_path / "RUN").exists()
