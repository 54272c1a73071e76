"""The house rules: who may import whom, how large things may grow, what must not appear."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "flowrl").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")])
ALLOWED = {
    "flowrl.types": set(),
    "flowrl.math": {"flowrl.types"},
    "flowrl.parts": {"flowrl.types", "flowrl.math"},
    "flowrl.samplers": {"flowrl.types", "flowrl.math"},
    "flowrl.estimators": {"flowrl.types", "flowrl.math"},
    "flowrl.models": {
        "flowrl.types",
        "flowrl.math",
        "flowrl.errors",
        "flowrl.paths",
        "flowrl.worlds",
        "flowrl.runtime.files",
    },
    "flowrl.algorithms": {
        "flowrl.types",
        "flowrl.errors",
        "flowrl.values",
        "flowrl.math",
        "flowrl.parts",
        "flowrl.samplers",
        "flowrl.estimators",
    },
    "flowrl.step": {"flowrl.types", "flowrl.errors", "flowrl.math", "flowrl.parts"},
    "flowrl.errors": set(),
    "flowrl.paths": {"flowrl.errors"},
    "flowrl.values": set(),
    "flowrl.detection": {"flowrl.errors", "flowrl.score.clip"},
    "rewards": {
        "flowrl.types",
        "flowrl.errors",
        "flowrl.worlds",
        "flowrl.detection",
        "flowrl.score.clip",
        "flowrl.score.convert",
        "flowrl.score.sandbox",
        "flowrl.score.workers",
        "flowrl.score.endpoint",
    },
}
METHODS = [path.stem for path in (ROOT / "flowrl/algorithms").glob("*.py") if path.stem != "__init__"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    checked = [path for path in FILES if within(name_of(path), package)]
    assert checked
    for path in checked:
        for module in imports(path):
            if within(module, "flowrl") or within(module, "rewards"):
                allowed = ALLOWED[package] | {package}
                assert any(within(module, a) for a in allowed), f"{path.name} of {package} imports {module}"


def test_the_trainer_names_no_method() -> None:
    for file in ("train.py", "rounds.py", "step.py", "session.py", "heldout.py"):
        path = ROOT / "flowrl" / file
        tree = ast.parse(path.read_text())
        words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        words |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not words & set(METHODS), file
        assert not any(within(module, "flowrl.algorithms.") for module in imports(path)), file
    assert len((ROOT / "flowrl/train.py").read_text().splitlines()) <= 240


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_sizes_and_manners(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400, "split the file"
    assert not text.strip() or ast.get_docstring(tree), "a module says in one sentence what it is"
    assert path.stem not in {"utils", "core", "common", "base", "helpers", "misc"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "locals"}, f"{node.func.id}() in line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
        if isinstance(node, ast.Global):
            pytest.fail(f"global state in line {node.lineno}")
    for forbidden in ("import pickle", "torch.load(", "weights_only=False", "yaml.unsafe_load", "yaml.full_load"):
        assert forbidden not in text, forbidden
    assert "serialization.load(" not in text or path.name == "convert.py"
    assert "yaml.load(" not in text or "class _Loader(yaml.SafeLoader)" in text


def test_every_public_definition_says_what_it_is() -> None:
    silent = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                silent.append(f"{name_of(path)}.{node.name}")
    assert not [s for s in silent if "Protocol" not in s and not within(s, "flowrl.types")], silent


def test_the_readme_lists_every_algorithm() -> None:
    text = (ROOT / "README.md").read_text()
    for name in METHODS:
        assert f"`{name}`" in text, f"README.md does not mention {name}"


@pytest.mark.slow
@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pyright"]])
def test_checkers_are_silent(command: list[str]) -> None:
    extra = ["--pythonpath", sys.executable] if command[0] == "pyright" else []
    done = subprocess.run(
        [sys.executable, "-m", *command, *extra], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
