"""`plast status RUN`: what is done, how far it is, how each launch ended. Reads only files and imports
nothing heavy, so that it answers at once on any machine that sees the run folder."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import click

from launcher.arguments import PATH, Command, as_json
from launcher.processes.attempts import Attempt, again_path, last_metrics, read_attempts
from launcher.processes.lock import Owner, lock_path, read_owner
from plast_train.errors import UserError
from plast_train.run_folder import STAGES, RunFolder, read_json

# The owner of a run folder writes into its lock file every 5 s; machines' clocks may differ a little.
SECONDS_OF_SILENCE = 30.0


@click.command(cls=Command, epilog="RUN is the run's folder.")
@click.argument("run", metavar="RUN", type=PATH)
@as_json
def status(run: Path, as_json: bool) -> int:
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise UserError(f"{run} is not a run folder (it has no config.yaml); give the --out of a run")
    tree = status_of(folder)
    print(json.dumps(tree, indent=1, ensure_ascii=False) if as_json else "\n".join(status_lines(tree)))
    return 0


def status_of(run: RunFolder) -> dict[str, Any]:
    """What `--json` prints. Ages and times left are in seconds, null where they are not known."""
    owner = read_owner(run)
    silence = time.time() - lock_path(run).stat().st_mtime if owner else None
    running = owner is not None and silence is not None and _lives(owner, silence)
    done = [stage for stage in STAGES if run.record(stage) is not None]
    missing = next((stage for stage in STAGES if stage not in done), None)
    metrics = last_metrics(run.metrics) or {}
    progress = run.logs / "progress.json"
    again = again_path(run)
    attempts = read_attempts(run)
    return {
        "run": str(run.path),
        "running": running,
        "owner": str(owner) if owner else None,
        "last_sign_of_life": silence,
        "stages_done": done,
        # The run is at the first stage that is not done, unless its last launch was asked for no more.
        "stage": missing if attempts and attempts[-1].kind != "done" else None,
        "progress": _progress(read_json(progress), running) if progress.is_file() else None,
        "step": metrics.get("step"),
        "loss": metrics.get("loss"),
        "last_checkpoint": _last_checkpoint(run),
        "attempts": [_attempt(attempt, running and attempt is attempts[-1]) for attempt in attempts],
        "restart_wanted": again.read_text(encoding="utf-8").strip() if again.is_file() else None,
    }


def status_lines(tree: dict[str, Any]) -> list[str]:
    """`status_of` as text."""
    lines = [f"{tree['run']}: {_state(tree)}"]
    for stage in STAGES:
        if stage in tree["stages_done"]:
            lines.append(f"  {stage:9} done")
        elif stage == tree["stage"]:
            lines.append(f"  {stage:9} {'running' if tree['running'] else 'not finished'}{_how_far(tree)}")
        else:
            lines.append(f"  {stage:9} -")
    if tree["step"] is not None:
        loss = f", loss {tree['loss']:.4f}" if tree["loss"] is not None else ""
        lines.append(f"training: step {tree['step']}{loss}")
    if tree["last_checkpoint"]:
        checkpoint = tree["last_checkpoint"]
        lines.append(f"last checkpoint: {checkpoint['name']}, {duration(checkpoint['age'])} ago")
    lines += [_attempt_line(attempt) for attempt in tree["attempts"]]
    if tree["restart_wanted"] and not tree["running"]:
        lines.append(f"to be started again: {tree['restart_wanted']}")
    return lines


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}" if name == "h" else f"{max(0, seconds) / unit:.0f} {name}"
    return f"{seconds / 86400:.1f} days"


def _lives(owner: Owner, silence: float) -> bool:
    """Whether the owner has written lately, and its process still exists if it is one of this machine."""
    if owner.host == socket.gethostname() and owner.system == Owner.me().system:
        try:
            os.kill(owner.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it exists, but is another user's
    return silence < SECONDS_OF_SILENCE


def _progress(progress: dict[str, Any], running: bool) -> dict[str, Any]:
    """How far the last loop is, with the time left at its pace so far."""
    pace, left = progress["per_second"], progress["total"] - progress["done"]
    seconds = left / pace if running and pace > 0 else None
    kept = {key: progress[key] for key in ("label", "done", "total", "unit", "per_second")}
    return kept | {"seconds_left": seconds}


def _last_checkpoint(run: RunFolder) -> dict[str, Any] | None:
    newest = max(run.checkpoints.glob("step-????????/manifest.json"), default=None)
    if newest is None:
        return None
    age = max(0.0, time.time() - newest.stat().st_mtime)
    return {"name": newest.parent.name, "step": int(newest.parent.name[5:]), "age": age}


def _attempt(attempt: Attempt, running: bool) -> dict[str, Any]:
    began, ended = attempt.began, attempt.ended or {}
    kept = {key: began[key] for key in ("host", "job", "restart", "nproc", "machines")}
    result = {key: ended.get(key) for key in ("stage", "step", "rank", "message")}
    kind = attempt.kind or ("running" if running else "lost")
    times = {"began": began["time"], "ended": ended.get("time")}
    return {"attempt": attempt.number, "kind": kind} | times | kept | result


def _state(tree: dict[str, Any]) -> str:
    if tree["running"]:
        silence = duration(max(0.0, tree["last_sign_of_life"]))
        return f"running ({tree['owner']}; last sign of life {silence} ago)"
    if len(tree["stages_done"]) == len(STAGES):
        return "finished"
    if not tree["attempts"] and not tree["stages_done"]:
        return "not started"
    if tree["owner"]:
        return f"not running; {tree['owner']} was lost {duration(max(0.0, tree['last_sign_of_life']))} ago"
    return "not running"


def _how_far(tree: dict[str, Any]) -> str:
    """How far the current stage is, if the last loop that reported its progress belongs to it."""
    progress = tree["progress"]
    if progress is None or progress["label"].split()[0] != tree["stage"]:
        return ""
    text = f": {progress['label']} {progress['done']}/{progress['total']} {progress['unit']}"
    if progress["per_second"] > 0:
        text += f", {progress['per_second']:.3g} a second"
    if progress["seconds_left"] is not None:
        text += f", about {duration(progress['seconds_left'])} left"
    return text


def _attempt_line(attempt: dict[str, Any]) -> str:
    where = f" in {attempt['stage']}" if attempt["stage"] else ""
    where += f" after step {attempt['step']}" if attempt["step"] is not None else ""
    job = f", job {attempt['job']}" if attempt["job"] else ""
    message = f": {attempt['message']}" if attempt["message"] else ""
    ranks = f"{attempt['machines']} x {attempt['nproc']} ranks"
    return (
        f"attempt {attempt['attempt']}: {attempt['began']} on {attempt['host']}{job}, {ranks}: "
        f"{attempt['kind']}{where}{message}"
    )
