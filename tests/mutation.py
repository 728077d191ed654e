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
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
# The slowest selection takes half a minute alone. A mutant may also make a loop endless: that is noticed too.
TIMEOUT = 300


@dataclass(frozen=True)
class Outcome:
    """`verdict`: killed, timeout (which also kills), survived, equivalent, or error if pytest cannot run."""

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


def pytest(tree: Path, tests: Sequence[str], timeout: float) -> tuple[int | None, float, str]:
    """Exit code (None after the timeout), seconds, and the last lines of the output."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        # A file changed twice within a second keeps its time stamp and would be taken from the cache.
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "PLAST_SHARED": os.environ.get("PLAST_SHARED", str(ROOT.parent / "shared")),
    }
    options = ["-x", "-p", "no:cacheprovider", "-m", "not slow and not cluster and not docker"]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return None, time.monotonic() - began, f"ended after {timeout:.0f} s"
    return process.returncode, time.monotonic() - began, "\n".join(output.strip().splitlines()[-3:])


def run(tree: Path, mutant: Mutant) -> Outcome:
    path = locate(tree, mutant)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, seconds, output = pytest(tree, mutant.tests, TIMEOUT)
    finally:
        path.write_text(text, encoding="utf-8")
    # 1: a test failed; 2: a module could not be imported; 4 and 5: no such test.
    verdict = {None: "timeout", 1: "killed", 2: "killed", 0: "survived"}.get(code, "error")
    detail = output if verdict != "killed" else _first_failure(output)
    if verdict == "survived" and mutant.equivalent:
        verdict, detail = "equivalent", mutant.equivalent
    file = str(path.relative_to(tree))
    return Outcome(mutant.name, file, mutant.old, mutant.new, verdict, round(seconds, 1), detail)


def _first_failure(output: str) -> str:
    line = next((x for x in output.splitlines() if x.startswith(("FAILED", "ERROR"))), "")
    return line.partition(" - ")[0].partition(" ")[2].removeprefix("tests/")


def run_all(mutants: Sequence[Mutant], workers: int) -> list[Outcome]:
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)
    outcomes: dict[str, Outcome] = {}

    def work(tree: Path) -> None:
        while True:
            try:
                mutant = waiting.get_nowait()
            except queue.Empty:
                return
            outcome = run(tree, mutant)
            outcomes[mutant.name] = outcome
            done = f"{len(outcomes):4}/{len(mutants)}"
            print(f"{done} {outcome.verdict:10} {outcome.seconds:6.1f} s  {mutant.name}", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        trees = [Path(folder) / str(number) for number in range(workers)]
        for tree in trees:
            copy_tree(tree)
        threads = [threading.Thread(target=work, args=(tree,)) for tree in trees]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [outcomes[mutant.name] for mutant in mutants]


def passes_unchanged(mutants: Sequence[Mutant]) -> bool:
    """Whether the selected tests pass while nothing is broken: else every mutant would seem killed."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy_tree(Path(folder))
        code, seconds, output = pytest(Path(folder), tests, 10 * TIMEOUT)
    print(f"unchanged: {output.splitlines()[-1] if output else code} ({seconds:.0f} s)")
    if code != 0:
        print(output)
    return code == 0


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
    if not passes_unchanged(mutants):
        return 2
    outcomes = run_all(mutants, min(options.workers, len(mutants)))
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
