"""Imports point down: no circle, no arrow upward, no stage that imports a stage, no torch in the launcher.

Every import counts, whether at the top of a module, inside a function or for type checkers alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAP = ROOT / "docs" / "architecture.md"

# The rooms of plast_train, lowest floor first; rooms on one floor do not import each other.
# docs/architecture.md shows the same lines.
FLOORS = """
errors
config run_folder
runtime
data
tasks
stages
lvlm
context
neurons scoring checkpoint figures
activations selection training evaluation analysis report comparison
pipeline
ablation
"""
LAUNCHER_FLOORS = """
environment table arguments
processes
checks
plan doctor
commands
cli
"""
TINY = "tiny"  # on no floor: it may import any of them, and none of them imports it
HEAVY = {"torch", "transformers", "deepspeed"}  # seconds to import; `plast --help` answers in half a second
MOST_LINES = 400
LONG_ON_PURPOSE = {"plast_train/config.py"}  # every option with its description

Imports = dict[str, set[str]]  # module → what it imports, as modules where they are ours


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name → file of every module of the two packages."""
    files = [
        path for package in ("launcher", "plast_train") for path in sorted((root / package).rglob("*.py"))
    ]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports_of(root: Path) -> Imports:
    modules = modules_of(root)
    return {
        name: set(_imports(ast.parse(path.read_text(encoding="utf-8")), name, path, modules)) - {name}
        for name, path in modules.items()
    }


def _imports(tree: ast.Module, name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (_ours(alias.name, modules) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            # `from package import module` imports the module, `from module import name` the module too.
            yield from (_ours(f"{source}.{alias.name}", modules) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _IMPORTERS:
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant) and isinstance(named.value, str):
                yield _ours(named.value, modules)


_IMPORTERS = {"import_module", "__import__"}


def _ours(name: str, modules: dict[str, Path]) -> str:
    """The longest part of a dotted name that is a module of ours, or else the name."""
    parts = name.split(".")
    candidates = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in modules), name)


def circles(imports: Imports) -> list[str]:
    """Modules that reach each other: one line for each group of them."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in imports.get(waiting.pop(), set()) - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    below = {name: reached(name) for name in imports}
    groups = {
        frozenset({a} | {b for b in below[a] if a in below.get(b, ())}) for a in imports if a in below[a]
    }
    return [f"circle: {', '.join(sorted(group))}" for group in sorted(groups, key=sorted)]


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floors_of(table: str) -> dict[str, int]:
    return {room: floor for floor, line in enumerate(table.strip().splitlines()) for room in line.split()}


def upward(imports: Imports, package: str, table: str) -> list[str]:
    """Imports from a room to a higher one or to another on the same floor, and rooms that are on no floor."""
    floors = floors_of(table)
    wrong = []
    for module, targets in sorted(imports.items()):
        if not module.startswith(f"{package}.") or (package, room_of(module)) == ("plast_train", TINY):
            continue
        if room_of(module) not in floors:
            wrong.append(f"{module} is on no floor")
            continue
        for target in sorted(t for t in targets if t.startswith(f"{package}.")):
            here, there = room_of(module), room_of(target)
            if there != here and there in floors and floors[there] >= floors[here]:
                wrong.append(
                    f"{'upward' if floors[there] > floors[here] else 'same floor'}: {module} → {target}"
                )
    return wrong


def launcher_above(imports: Imports) -> list[str]:
    """The launcher stands on plast_train."""
    return [
        f"upward: {module} → {target}"
        for module, targets in sorted(imports.items())
        for target in sorted(targets)
        if module.startswith("plast_train") and target.split(".")[0] == "launcher"
    ]


def heavy_in_launcher(imports: Imports) -> list[str]:
    return [
        f"the launcher imports {target.split('.')[0]}: {module}"
        for module, targets in sorted(imports.items())
        for target in sorted(targets)
        if module.startswith("launcher") and target.split(".")[0] in HEAVY
    ]


def tiny_from_outside(imports: Imports) -> list[str]:
    return [
        f"{module} imports the embedded model: {target}"
        for module, targets in sorted(imports.items())
        for target in sorted(targets)
        if module.startswith("plast_train.")
        and room_of(module) != TINY
        and target.startswith(f"plast_train.{TINY}")
    ]


def too_long(root: Path) -> list[str]:
    files = {path.relative_to(root).as_posix(): path for path in modules_of(root).values()}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    return [
        f"{name} has {count} lines, more than {MOST_LINES}"
        for name, count in sorted(lines.items())
        if count > MOST_LINES and name not in LONG_ON_PURPOSE
    ]


RULES: dict[str, Callable[[Path], list[str]]] = {
    "no circle": lambda root: circles(imports_of(root)),
    "plast_train points down": lambda root: upward(imports_of(root), "plast_train", FLOORS),
    "launcher points down": lambda root: upward(imports_of(root), "launcher", LAUNCHER_FLOORS),
    "plast_train knows no launcher": lambda root: launcher_above(imports_of(root)),
    "no torch in the launcher": lambda root: heavy_in_launcher(imports_of(root)),
    "nobody imports the embedded model": lambda root: tiny_from_outside(imports_of(root)),
    "no long file": too_long,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_code_keeps_the_rule(rule: str) -> None:
    assert RULES[rule](ROOT) == []


# Rule → a fault, as module → its text, and what the rule must then report.
FAULTS: list[tuple[str, dict[str, str], str]] = [
    (
        "no circle",
        {
            "plast_train/data/a.py": "from plast_train.data import b\n",
            "plast_train/data/b.py": "import plast_train.data.a\n",
        },
        "circle: plast_train.data.a, plast_train.data.b",
    ),
    (
        "no circle",
        {
            "plast_train/data/a.py": "def late():\n    from plast_train.data.b import x\n",
            "plast_train/data/b.py": "from .c import y\n",
            "plast_train/data/c.py": "if TYPE_CHECKING:\n    from plast_train.data.a import late\n",
        },
        "circle: plast_train.data.a, plast_train.data.b, plast_train.data.c",
    ),
    (
        "plast_train points down",
        {
            "plast_train/data/a.py": "def late():\n    from plast_train.training import b\n",
            "plast_train/training/b.py": "",
        },
        "upward: plast_train.data.a → plast_train.training.b",
    ),
    (
        "plast_train points down",
        {
            "plast_train/report/a.py": "from plast_train.analysis.b import x\n",
            "plast_train/analysis/b.py": "",
        },
        "same floor: plast_train.report.a → plast_train.analysis.b",
    ),
    (
        "plast_train points down",
        {"plast_train/scoring/a.py": "from plast_train.neurons.b import x\n", "plast_train/neurons/b.py": ""},
        "same floor: plast_train.scoring.a → plast_train.neurons.b",
    ),
    ("plast_train points down", {"plast_train/attic/a.py": ""}, "plast_train.attic.a is on no floor"),
    (
        "launcher points down",
        {"launcher/processes/a.py": "from launcher.commands import b\n", "launcher/commands/b.py": ""},
        "upward: launcher.processes.a → launcher.commands.b",
    ),
    (
        "plast_train knows no launcher",
        {"plast_train/data/a.py": "from launcher.table import b\n", "launcher/table.py": ""},
        "upward: plast_train.data.a → launcher.table",
    ),
    (
        "no torch in the launcher",
        {"launcher/table.py": "def late():\n    import torch.cuda\n"},
        "imports torch",
    ),
    (
        "no torch in the launcher",
        {"launcher/table.py": "from importlib import import_module\nimport_module('deepspeed')\n"},
        "imports deepspeed",
    ),
    (
        "no torch in the launcher",
        {"launcher/table.py": "from transformers import AutoTokenizer\n"},
        "imports transformers",
    ),
    (
        "nobody imports the embedded model",
        {"plast_train/data/a.py": "from plast_train.tiny.world import b\n", "plast_train/tiny/world.py": ""},
        "plast_train.data.a imports the embedded model: plast_train.tiny.world",
    ),
    ("no long file", {"plast_train/data/a.py": "\n" * 401}, "plast_train/data/a.py has 401 lines"),
]


@pytest.mark.parametrize(
    ("rule", "files", "report"), FAULTS, ids=[f"{r}-{i}" for i, (r, _, _) in enumerate(FAULTS)]
)
def test_a_fault_is_noticed(rule: str, files: dict[str, str], report: str, tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = RULES[rule](tmp_path)
    assert len(found) == 1 and report in found[0]
    # The fault breaks this rule, and no tree without it does.
    for name in files:
        (tmp_path / name).write_text("", encoding="utf-8")
    assert [line for line in RULES[rule](tmp_path) if "on no floor" not in line] == []


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    files = {
        "plast_train/config.py": "import torch\n" + "\n" * 1000,
        "plast_train/tiny/world.py": "from plast_train.training import a\n",
        "plast_train/training/a.py": "from plast_train.training.b import x\nfrom plast_train import config\n",
        "plast_train/training/b.py": "import torch\n",
        "launcher/cli.py": "from plast_train.tiny import world\nfrom launcher.commands import run\n",
        "launcher/commands/run.py": "from launcher.commands import other\nimport torchvision_is_not_torch\n",
        "launcher/commands/other.py": "\n" * 400,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert {rule: check(tmp_path) for rule, check in RULES.items()} == {rule: [] for rule in RULES}


def test_the_map_shows_these_floors() -> None:
    _, start, rest = MAP.read_text(encoding="utf-8").partition("```floors\n")
    assert start, f"{MAP} has no block that begins with ```floors"
    assert rest.partition("```")[0].split("\n") == FLOORS.lstrip().split("\n")


def test_every_room_is_on_a_floor() -> None:
    rooms = {room_of(name) for name in modules_of(ROOT) if name.startswith("plast_train.")}
    assert rooms - {TINY} == set(floors_of(FLOORS))
