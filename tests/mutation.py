"""Breaks the core one line at a time and checks that the tests notice (`make mutation`).

Each mutant replaces one snippet of the code in a copy of the tree and runs the few tests that should fail.
It is killed if one fails, and survives if all pass. The list is in `mutants.py` beside this file. A general
tool would mutate every operator and run the whole suite for each; here every mutant is a mistake in a formula
that the results rest on, and names the tests that hold it.

    python tests/mutation.py [--only NAME] [--list] [--check] [--out FOLDER] [--workers 2]

The exit code is 0 if all are killed (or equivalent), 1 if one survives, and 2 if a snippet is not found
exactly once or the tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
# Libraries only, none of our own modules.
HEAVY = (
    "torch",
    "torch.utils.tensorboard",
    "transformers.models.llava.modeling_llava",
    "transformers.models.auto.modeling_auto",
    "deepspeed",
    "peft",
    "scipy.stats",
    "matplotlib.pyplot",
    "pandas",
)
# The slowest selection takes half a minute alone. A mutant may also make a loop endless: that is noticed too.
TIMEOUT = 300


@dataclass(frozen=True)
class Outcome:
    """`verdict` is killed, timeout (killed too), survived, equivalent, or error if pytest cannot run."""

    name: str
    file: str
    old: str
    new: str
    verdict: str
    seconds: float
    detail: str


def locate(root: Path, mutant: Mutant) -> Path:
    """The file that holds the snippet, somewhere below `mutant.place`.

    Raises:
        LookupError: it is not there exactly once; says where else it is.
    """
    place = root / mutant.place
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    found = [file for file in files for _ in range(file.read_text(encoding="utf-8").count(mutant.old))]
    if len(found) == 1:
        return found[0]
    if found:
        raise LookupError(f"{mutant.name}: {len(found)} times in {mutant.place}: {mutant.old!r}")
    elsewhere = [
        str(file.relative_to(root))
        for package in ("launcher", "plast_train")
        for file in sorted((root / package).rglob("*.py"))
        if mutant.old in file.read_text(encoding="utf-8")
    ]
    hint = f"; it is in {', '.join(elsewhere)}" if elsewhere else ""
    raise LookupError(f"{mutant.name}: not in {mutant.place}{hint}: {mutant.old!r}")


def unfindable(root: Path, mutants: Sequence[Mutant]) -> list[str]:
    """What is wrong with the list: snippets that are not found once, and test files that are not there."""
    wrong = []
    for mutant in mutants:
        try:
            locate(root, mutant)
        except LookupError as error:
            wrong.append(str(error))
        for test in mutant.tests:
            file, _, function = test.partition("::")
            path = root / file
            if not path.exists():
                wrong.append(f"{mutant.name}: there is no {file}")
            elif function and f"def {function.partition('[')[0]}(" not in path.read_text(encoding="utf-8"):
                wrong.append(f"{mutant.name}: there is no {test}")
    return wrong


def copy_tree(target: Path) -> None:
    """What git tracks and what it would: without caches, environments and run folders."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def preload() -> None:
    """Imports what every test would: a forked child then begins with it instead of taking seconds."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("PLAST_SHARED", str(ROOT.parent / "shared"))
    for module in HEAVY:
        importlib.import_module(module)


def start(tree: Path, tests: Sequence[str], log: Path) -> int:
    """Forks a child that runs pytest in the tree, and returns its process id. Its exit code is pytest's."""
    child = os.fork()
    if child:
        return child
    code = 3  # pytest's own code for an internal error
    try:
        os.setsid()  # so that what the tests start can be ended with it
        os.chdir(tree)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ["PYTHONPATH"] = str(tree)
        # A file changed twice within a second keeps its time stamp, and would be taken from the cache.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path[:0] = [str(tree), str(tree / "tests")]
        chosen = "not slow and not cluster and not docker"
        code = int(pytest.main(["-x", "-p", "no:cacheprovider", "-m", chosen, *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)


@dataclass
class Running:
    mutant: Mutant
    child: int
    began: float
    file: Path
    text: str


def run_all(mutants: Sequence[Mutant], folder: Path, workers: int) -> list[Outcome]:
    """As many at a time as there are workers, each in a tree of its own."""
    trees = [folder / f"tree-{number}" for number in range(workers)]
    for tree in trees:
        copy_tree(tree)
    waiting, running, outcomes = list(mutants), dict[Path, Running](), dict[str, Outcome]()
    while waiting or running:
        for tree in trees:
            if tree not in running and waiting:
                mutant = waiting.pop(0)
                file = locate(tree, mutant)
                text = file.read_text(encoding="utf-8")
                file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
                child = start(tree, mutant.tests, log_of(tree))
                running[tree] = Running(mutant, child, time.monotonic(), file, text)
        time.sleep(0.05)
        for tree, now in list(running.items()):
            child, status = os.waitpid(now.child, os.WNOHANG)
            if not child and time.monotonic() - now.began > TIMEOUT:
                os.killpg(now.child, signal.SIGKILL)
                child, status = os.waitpid(now.child, 0)
            if child:
                del running[tree]
                now.file.write_text(now.text, encoding="utf-8")
                outcome = judge(now, status, tree)
                outcomes[outcome.name] = outcome
                done = f"{len(outcomes):4}/{len(mutants)}"
                print(f"{done} {outcome.verdict:10} {outcome.seconds:6.1f} s  {outcome.name}", flush=True)
    return [outcomes[mutant.name] for mutant in mutants]


def log_of(tree: Path) -> Path:
    return tree.with_suffix(".log")


def judge(ended: Running, status: int, tree: Path) -> Outcome:
    mutant, lines = ended.mutant, log_of(tree).read_text(errors="replace").strip().splitlines()
    # 1: a test failed; 2: a module could not be imported; 4 and 5: there is no such test.
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    verdict = {None: "timeout", 1: "killed", 2: "killed", 0: "survived"}.get(code, "error")
    failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
    detail = failed.partition(" - ")[0].partition(" ")[2].removeprefix("tests/")
    if verdict == "survived" and mutant.equivalent:
        verdict, detail = "equivalent", mutant.equivalent
    elif verdict == "error":
        detail = " ".join(lines[-3:])
    seconds = round(time.monotonic() - ended.began, 1)
    file = str(ended.file.relative_to(tree))
    return Outcome(mutant.name, file, mutant.old, mutant.new, verdict, seconds, detail)


def passes_unchanged(mutants: Sequence[Mutant], folder: Path) -> bool:
    """Whether the selected tests pass while nothing is broken: else every mutant would seem killed."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    tree = folder / "unchanged"
    copy_tree(tree)
    began = time.monotonic()
    _, status = os.waitpid(start(tree, tests, log_of(tree)), 0)
    lines = log_of(tree).read_text(errors="replace").strip().splitlines()
    passed = os.waitstatus_to_exitcode(status) == 0
    print("\n".join(lines[-1:] if passed else lines[-40:]))
    print(f"{len(tests)} selections without a mutant: {time.monotonic() - began:.0f} s", flush=True)
    return passed


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A table; the line above counts the verdicts."""

    def code(text: str) -> str:
        return "`" + " ".join(text.split()).replace("|", "\\|") + "`"

    verdicts = [outcome.verdict for outcome in outcomes]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    rows = [
        f"| {o.name} | `{o.file}` | {code(o.old)} → {code(o.new)} | {o.verdict} | {o.seconds:.0f} s | "
        f"{o.detail if o.verdict in ('killed', 'equivalent') else ''} |"
        for o in outcomes
    ]
    head = ["| mutant | file | change | verdict | time | by |", "|---|---|---|---|---|---|"]
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    return "\n".join(
        [f"{len(outcomes)} mutants: {counts}; {minutes:.0f} minutes of one process.", "", *head, *rows, ""]
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="mutants whose name begins so"
    )
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--check", action="store_true", help="find every snippet and test, and run nothing")
    parser.add_argument("--out", type=Path, help="folder for mutation.md and mutation.json")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    mutants = [m for m in MUTANTS if not options.only or m.name.startswith(tuple(options.only))]
    if not mutants:
        parser.error(f"no mutant begins with {' or '.join(options.only)}; see --list")
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name:34} {mutant.place:36} {mutant.old!r} → {mutant.new!r}")
        return 0
    if wrong := unfindable(ROOT, mutants):
        print("\n".join(wrong), file=sys.stderr)
        return 2
    if options.check:
        print(f"{len(mutants)} mutants, every snippet is there once")
        return 0
    preload()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        if not passes_unchanged(mutants, Path(folder)):
            return 2
        outcomes = run_all(mutants, Path(folder), min(options.workers, len(mutants)))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mutation.md").write_text(markdown(outcomes), encoding="utf-8")
        content = json.dumps([asdict(outcome) for outcome in outcomes], indent=1, ensure_ascii=False)
        (options.out / "mutation.json").write_text(content + "\n", encoding="utf-8")
    alive = [outcome for outcome in outcomes if outcome.verdict in ("survived", "error")]
    for outcome in alive:
        print(f"{outcome.verdict}: {outcome.name} in {outcome.file}: {outcome.old!r} → {outcome.new!r}")
    print(f"{len(outcomes) - len(alive)} of {len(outcomes)} mutants are killed or equivalent")
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main())
