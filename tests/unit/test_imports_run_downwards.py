"""Imports run downwards only, and no module imports another that imports it, at the top of a file or in a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "entropy_rft"

# The rooms from the ground up; this is the only place that orders them. A room imports from the lines above its own
# only, so two rooms on one line know nothing of each other. A new room is added here.
ORDER = (
    # What any module may use; none of these uses another one of the package.
    ("errors", "suggestions", "signals", "threads", "retry_after", "atomic", "run_files", "tags", "entropy", "assets"),
    ("files",),
    ("models", "effort"),
    ("rewards",),
    ("tasks", "sampling"),
    ("reporting",),
    ("difficulty",),
    ("training", "evaluation", "router"),
    ("demo",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# Not in the wheel: the package must not need them.
OUTSIDE = ("studies", "scripts", "tests")


def modules(root: Path, package: str) -> dict[str, ast.Module]:
    """Every module of `package`, by its dotted name."""
    found = {}
    for file in sorted((root / package).rglob("*.py")):
        *folders, name = file.relative_to(root).with_suffix("").parts
        dotted = ".".join(folders if name == "__init__" else (*folders, name))
        found[dotted] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


def imported(tree: ast.AST, names: Mapping[str, ast.Module]) -> Iterator[tuple[str, int]]:
    """What a module imports, and in which line; what only a type checker reads is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from imported(other, names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name of the module"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in names else str(node.module)), node.lineno
        else:
            yield from imported(node, names)


def room(module: str) -> str:
    """``difficulty`` of ``entropy_rft.difficulty.compare.page``; the package itself stands for its version."""
    return module.split(".")[1] if "." in module else ""


def upward(trees: Mapping[str, ast.Module]) -> list[str]:
    """The imports that break the order, one text each."""
    wrong = []
    for module, tree in trees.items():
        here = room(module)
        for target, line in imported(tree, trees):
            top = target.split(".")[0]
            there = room(target)
            if top in OUTSIDE or (
                top == PACKAGE and there not in ("", here) and LEVEL[there] >= LEVEL.get(here, len(ORDER))
            ):
                wrong.append(f"{module}, line {line}, imports {target}")
    return wrong


def circle(trees: Mapping[str, ast.Module]) -> list[str]:
    """The modules of a circle, or nothing."""
    graph = {m: {t for t, _ in imported(tree, trees) if t in trees and t != m} for m, tree in trees.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return modules(ROOT, PACKAGE)


def test_every_room_has_a_place(trees: dict[str, ast.Module]) -> None:
    assert {room(module) for module in trees} - {""} == set(LEVEL)


def test_no_import_runs_upwards(trees: dict[str, ast.Module]) -> None:
    assert upward(trees) == []


def test_no_circle(trees: dict[str, ast.Module]) -> None:
    assert circle(trees) == []


def test_studies_are_free_of_circles() -> None:
    assert circle(modules(ROOT, "studies")) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("entropy_rft.models.a", "from entropy_rft.training.run import TrainingRun", True),
        ("entropy_rft.training.a", "def late():\n    import entropy_rft.evaluation.run", True),
        ("entropy_rft.cli.a", "from studies.methods import plan", True),
        ("entropy_rft.run_files", "from entropy_rft.atomic import write_text", True),
        ("entropy_rft.models.a", "from entropy_rft.assets import TINY_PROBE\nimport torch", False),
        ("entropy_rft.models.a", "if TYPE_CHECKING:\n    from entropy_rft.cli import main", False),
        ("entropy_rft.cli.a", "from entropy_rft import __version__", False),
    ],
)
def test_the_check_finds_what_it_looks_for(name: str, text: str, expected: bool) -> None:
    assert bool(upward({name: ast.parse(text)})) is expected


def test_a_circle_through_a_function_is_found() -> None:
    texts = {"a": "import b", "b": "def late():\n    from c import x", "c": "import a"}
    assert set(circle({name: ast.parse(text) for name, text in texts.items()})) == {"a", "b", "c"}
