"""The house rules: who may import whom, how large things may grow, what must not appear."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "flowrl").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")])
LAYERS = (
    "flowrl.version flowrl.devices flowrl.errors flowrl.connections flowrl.processes flowrl.renamed flowrl.values",
    "flowrl.types",
    "flowrl.files flowrl.launcher flowrl.paths flowrl.math flowrl.media flowrl.exit_guard",
    "flowrl.importing",
    "flowrl.environments",
    "flowrl.parts flowrl.samplers flowrl.estimators flowrl.sandbox flowrl.scorers flowrl.worlds",
    "flowrl.detection flowrl.models flowrl.algorithms",
    "flowrl.composition flowrl.config flowrl.generated rewards",
    "flowrl.data flowrl.clients",
    "flowrl.score",
    "flowrl.records",
    "flowrl.runtime flowrl.trajectories",
    "flowrl.startup",
    "flowrl.coupling",
    "flowrl.update_checks",
    "flowrl.step",
    "flowrl.companions",
    "flowrl.session",
    "flowrl.staleness",
    "flowrl.rounds flowrl.ratio_check flowrl.monitor",
    "flowrl.heldout_records",
    "flowrl.evaluation flowrl.heldout flowrl.recipes flowrl.checks flowrl.replay",
    "flowrl.report flowrl.trainer",
    "flowrl.train flowrl.remote flowrl.judging",
    "flowrl.commands",
    "flowrl.notebook",
    "flowrl.cli",
    "flowrl",
)
"""Every module belongs to one of these; it imports what stands above, of its own line only itself. Imports inside
functions and for type checkers count."""
METHODS = [path.stem for path in (ROOT / "flowrl/algorithms").glob("*.py") if path.stem != "__init__"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {name_of(path).removesuffix(".__init__"): path for path in FILES}


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of this repository that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}: a relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(module for name in found if (module := _module_of(name)))


def _module_of(name: str) -> str:
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def unit_of(module: str) -> tuple[int, str]:
    """The line of `LAYERS` that a module belongs to, and its entry there."""
    if module in ("flowrl", "flowrl.__main__"):
        return len(LAYERS) - 1, "flowrl"
    entries = [(i, e) for i, line in enumerate(LAYERS[:-1]) for e in line.split() if within(module, e)]
    assert len(entries) == 1, f"{module}: say in LAYERS where it belongs"
    return entries[0]


def test_imports_point_one_way() -> None:
    wrong = []
    for module, path in MODULES.items():
        line, unit = unit_of(module)
        for other in imports(path):
            its_line, its_unit = unit_of(other)
            if its_unit != unit and its_line >= line:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    while free := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in free}
    while idle := graph.keys() - {need for needs in graph.values() for need in needs}:
        graph = {module: needs for module, needs in graph.items() if module not in idle}
    assert not graph, f"circles among {sorted(graph)}"


def test_programs_of_other_processes_are_started_by_name_and_imported_by_nobody() -> None:
    programs = {
        "flowrl.remote.child",
        "flowrl.remote.environment",
        "flowrl.remote.worker",
        "flowrl.remote.actor",
        "flowrl.remote.rollout_actor",
        "flowrl.report.follow",
        "flowrl.sandbox.worker",
    }
    assert programs <= MODULES.keys()
    assert not {f"{module} imports {it}" for module, path in MODULES.items() for it in imports(path) & programs}


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


def test_the_methods_of_the_readme_exist() -> None:
    section = (ROOT / "README.md").read_text().partition("| methods to begin with |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert len(named) > 20 and named <= set(METHODS), named - set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pyright"]])
def test_checkers_are_silent(command: list[str]) -> None:
    extra = ["--pythonpath", sys.executable] if command[0] == "pyright" else []
    done = subprocess.run(
        [sys.executable, "-m", *command, *extra], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
