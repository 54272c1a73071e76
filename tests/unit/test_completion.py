"""What the shell offers for half-typed words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowrl.cli import completion


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configs and runs."""
    files = [
        "a.yaml",
        "configs/quick.yaml",
        "configs/flux/fast.yml",
        "configs/accelerate/node.yaml",
        "mine/deep/x.yaml",
    ]
    files += [
        "runs/one/config.yaml",
        "runs/compare/a/seed0/config.yaml",
        "runs/notes/readme.txt",
        "old/run[1]/config.yaml",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for step in ("step_000010", "step_000020"):
        (tmp_path / "runs/one/checkpoints" / step).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def complete(words: str, shell: str = "bash") -> list[str]:
    """What a shell gets, by its own protocol, and that nothing heavy is imported for it."""
    typed = words.split(" ")
    given = {"COMP_WORDS": words, "COMP_CWORD": str(len(typed) - 1), "_TYPER_COMPLETE_ARGS": words}
    code = "import sys, atexit; sys.argv = ['flowrl']; from flowrl.cli import main\n"
    code += "heavy = {'torch', 'numpy', 'transformers', 'yaml'}\n"
    code += "atexit.register(lambda: print('heavy:', heavy & set(sys.modules), file=sys.stderr)); main()"
    env = {**os.environ, **given, "_FLOWRL_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert "heavy: set()" in done.stderr, done.stderr
    return done.stdout.split()


def test_configs():
    assert completion.config_files("") == ["a.yaml", "configs/flux/fast.yml", "configs/quick.yaml"]
    assert completion.config_files("configs/q") == ["configs/quick.yaml"]
    assert completion.config_files("mine/de") == ["mine/deep/x.yaml"]
    assert completion.config_files("nowhere") == []
    assert str(Path("configs/quick.yaml").absolute()) in completion.config_files(str(Path("configs/q").absolute()))


def test_runs():
    assert completion.run_folders("") == ["old/run[1]", "runs/compare/a/seed0", "runs/one"]
    assert completion.run_folders("runs/o") == ["runs/one"]
    assert completion.run_folders("old/run[") == ["old/run[1]"]
    assert completion.resumable("") == ["auto", *completion.run_folders("")]
    assert completion.resumable("a") == ["auto"] and completion.weight_sets("l") == ["live"]


def test_presets_are_those_that_ship():
    from flowrl.composition import preset_names

    assert completion.preset_names("") == sorted(preset_names())
    assert completion.preset_names("dan") == ["dance_grpo"]


def test_checkpoints_are_those_of_the_run_that_was_typed(monkeypatch: pytest.MonkeyPatch):
    assert completion.checkpoint_names("") == ["best", "latest"]
    monkeypatch.setenv("COMP_WORDS", "flowrl export runs/one --checkpoint ")
    found = [f"runs/one/checkpoints/step_0000{step}" for step in (10, 20)]
    assert completion.checkpoint_names("") == ["best", "latest", *found]
    assert completion.checkpoint_names("runs") == found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("flowrl train configs/", ["configs/flux/fast.yml", "configs/quick.yaml"]),
        ("flowrl train a.yaml --resume au", ["auto"]),
        ("flowrl algorithms dr_", ["dr_grpo"]),
        ("flowrl algorithms dapo --diff gs", ["gspo"]),
        ("flowrl watch runs/one runs/c", ["runs/compare/a/seed0"]),
        ("flowrl push runs/o", ["runs/one"]),
        ("flowrl export runs/one --to mer", ["merged"]),
        ("flowrl sample runs/one --checkpoint lat", ["latest"]),
        ("flowrl eval runs/one --wei", []),
        ("flowrl exp", ["export"]),
    ],
)
def test_a_shell_gets_what_fits(words: str, offered: list[str]):
    assert complete(words) == offered


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str):
    code = "import sys; sys.argv = ['flowrl']; from flowrl.cli import main; main()"
    env = {**os.environ, "_FLOWRL_COMPLETE": f"source_{shell}", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert "_FLOWRL_COMPLETE" in done.stdout
