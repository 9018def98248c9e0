"""The house as it is drawn: floors, sizes, and calls that must not occur."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CORE = ROOT / "packages/core/src/robust_core"
FLOORS = [
    {"errors", "image_files", "randomness", "storage", "workers"},
    {"data", "models"},
    {"cam"},
    {"attacks"},
    {"losses"},
    {"evaluation"},
    {"training"},
    {"reporting"},
    {"config", "extras", "gallery", "run_data", "plan", "session", "cli", "script"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = [
    *sorted(ROOT.glob("packages/*/src/**/*.py")),
    *sorted(path for path in ROOT.glob("benchmarks/**/*.py") if path.parent.name != "tests"),
    ROOT / "noxfile.py",
]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_a_room_imports_only_from_below():
    wrong = []
    for path in CORE.rglob("*.py"):
        place = path.relative_to(CORE).parts[0].removesuffix(".py")
        if place == "__init__":
            continue
        for module in imports_of(path):
            parts = module.split(".")
            if parts[0] != "robust_core" or len(parts) < 2 or parts[1] == place:
                continue
            if FLOOR_OF[parts[1]] > FLOOR_OF[place]:
                wrong.append(f"{place} imports {module}")
    assert wrong == []


def test_the_core_knows_no_paper_and_no_paper_another():
    papers = {path.name for path in (ROOT / "packages").glob("*/src/*") if path.is_dir()} - {"robust_core"}
    for package in (ROOT / "packages").glob("*/src/*"):
        others = papers - {package.name}
        for path in package.rglob("*.py"):
            assert not {module.split(".")[0] for module in imports_of(path)} & others, path


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else node


def test_no_code_of_the_core_names_a_paper():
    # "part" only as a word of its own in quotes; kinds of attacks and flags that papers have added
    names = re.compile(r"(?i:ancra|gdro|square-outputs|pth.name)|(['\"])(part|PART)\1")
    for path in CORE.rglob("*.py"):
        code = ast.unparse(_WithoutDocstrings().visit(ast.parse(path.read_text())))
        assert not names.search(code), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_exports(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            told = len((ast.get_docstring(node, clean=False) or "").splitlines())
            assert node.end_lineno - node.lineno - told <= 60, node.name


def test_nothing_foreign_is_unpickled_and_no_shell_is_used():
    forbidden = r"weights_only\s*=\s*False|pickle\.loads?\(|shell\s*=\s*True|\beval\(\"|\bexec\(|extractall\("
    for path in SOURCES:
        assert not re.search(forbidden, path.read_text()), path
    for path in CORE.rglob("*.py"):
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text()):
            assert "weights_only=True" in call, (path, call)
