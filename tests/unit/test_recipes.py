"""Levels, curves with bands, and the verdicts of ``flowrl reproduce``."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

from flowrl import cli
from flowrl.commands import reproduce as command
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.recipes import curve
from flowrl.recipes.level import expected_memory, level_of

CONFIG = """# A recipe.
# Memory to expect (an estimate): about 190 GB in full, with LoRA about
# 36 GB at micro_batch 6.
# Level: learns
name: small
model: {path: sudoku, full: true}
algorithm: {use: rloo, length: 17}
data: {train: "sudoku:train", test: "sudoku:test", prompts: 2, group: 4}
rewards: [sudoku]
train: {iterations: 20, threads: 1}
"""
STEPS = (0, 10, 20)
RUNS = {0: (0.2, 0.5, 0.80), 1: (0.2, 0.54, 0.84), 2: (0.2, 0.52, 0.82)}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    return Path("small.yaml")


def trainer(values_of: dict[int, tuple[float, ...]], rise: float = 1 / 20):
    """Stands for training: writes what a run of a seed leaves behind, its reward rising with the iterations."""

    def train(config: Config, until: int | None = None, **options: object) -> Path:
        folder = config.directory
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("name: small\n")
        reached = [s for s in STEPS if until is None or s <= until]
        rows = dict(zip(reached, values_of[config.train.seed], strict=False))
        lines = []
        for step in range(max(rows) + 1):
            heldout = {"eval/reward/mean": rows[step]} if step in rows else {}
            training = {"reward/mean": rise * step} if step else {}
            lines.append({"step": step, "time": 60.0 + step, **heldout, **training})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "environment.json").write_text(json.dumps({"started": "today", "commit": "abc"}))
        held = {"step": 1, "phase": "update", "devices": {"cuda:0": 7}, "host": 1000 + config.train.seed}
        (folder / "memory.jsonl").write_text(json.dumps(held) + "\n")
        return folder

    return train


def recorded(recipe: Path) -> curve.Curve:
    return command.record(recipe, [0, 1, 2], None, None, trainer(RUNS))


def flowrl(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flowrl", "reproduce", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_level_is_one_line_of_the_header(recipe: Path) -> None:
    assert level_of(recipe) == "learns" and expected_memory(recipe) == "36 GB"
    recipe.write_text(CONFIG.replace("# Level: learns\n", ""))
    with pytest.raises(UserError, match="has 0 lines '# Level: NAME', and needs one, of accepted"):
        level_of(recipe)
    recipe.write_text(CONFIG.replace("Level: learns", "Level: learnt"))
    with pytest.raises(UserError, match="did you mean 'learns'"):
        level_of(recipe)
    recipe.write_text(CONFIG.replace("# Level", "# Level: runs\n# Level"))
    with pytest.raises(UserError, match="2 lines"):
        level_of(recipe)
    recipe.write_text(CONFIG.replace("# Level: learns\n", "") + "# Level: runs\n")  # below the header it says nothing
    with pytest.raises(UserError, match="0 lines"):
        level_of(recipe)


def test_half_a_band_is_three_deviations_of_a_further_run_and_has_a_floor() -> None:
    points = curve.points_of(STEPS, list(RUNS.values()))
    assert [p.mean for p in points] == pytest.approx([0.2, 0.52, 0.82])
    half = 3 * 0.02 * math.sqrt(4 / 3)
    assert [(p.high - p.low) / 2 for p in points] == pytest.approx([0.05 * 0.62, half, half])
    assert points[1].values == (0.5, 0.54, 0.52)


def test_a_step_with_little_spread_has_that_of_all_steps() -> None:
    lucky = curve.points_of(STEPS, [(0.2, 0.4, 0.8), (0.2, 0.5, 0.8), (0.2, 0.6, 0.8)])
    half = 3 * math.sqrt((0.1**2 + 0) / 2) * math.sqrt(4 / 3)
    assert (lucky[2].high - lucky[2].low) / 2 == pytest.approx(half)


def test_a_curve_is_recorded_beside_its_config_and_read_again(recipe: Path) -> None:
    made = recorded(recipe)
    assert curve.read(recipe) == made
    assert Path("curves/small.json").is_file()
    assert made.command == "flowrl reproduce small.yaml --record 0,1,2 --metric eval/reward/mean"
    assert list(made.points) == ["eval/reward/mean", "reward/mean"] and made.metric == "eval/reward/mean"
    assert [point.step for point in made.points["reward/mean"]] == [10, 20]
    assert [point.mean for point in made.points["reward/mean"]] == pytest.approx([5.5 / 20, 15.5 / 20])
    assert made.seconds == (80.0, 80.0, 80.0) and made.memory == {"host": 1002, "cuda:0": 7}
    assert made.machine == {"commit": "abc"}
    assert made.smoke == 10


def test_a_curve_of_another_config_is_refused_and_can_be_renewed(recipe: Path) -> None:
    recorded(recipe)
    recipe.write_text(CONFIG.replace("# A recipe.", "# The same recipe."))
    curve.read(recipe)
    recipe.write_text(CONFIG.replace("prompts: 2", "prompts: 3"))
    with pytest.raises(UserError, match="has changed since its curve was recorded; renew it: flowrl reproduce"):
        curve.read(recipe)
    command.record(recipe, [0, 1, 2], None, Path("again"), trainer(RUNS))
    curve.read(recipe)


def test_what_cannot_be_a_band_is_refused(recipe: Path) -> None:
    for seeds in ([0, 1], [0, 1, 1]):
        with pytest.raises(UserError, match="three or more different seeds"):
            command.record(recipe, seeds, None, None, trainer(RUNS))
    flat = {seed: (0.2, 0.2 + 0.1 * seed, 0.2 + 0.1 * seed) for seed in range(3)}
    with pytest.raises(UserError, match="that is not learning"):
        command.record(recipe, [0, 1, 2], None, None, trainer(flat))
    with pytest.raises(UserError, match=r"no eval/rewrd/mean .*did you mean 'eval/reward/mean'"):
        command.record(recipe, [0, 1, 2], "eval/rewrd/mean", None, trainer(RUNS))
    assert not curve.file_of(recipe).exists()


def test_inside_is_0_and_outside_is_1_with_where_and_by_how_much(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(recipe)
    others = {3: (0.2, 0.53, 0.80), 4: (0.2, 0.53, 0.60), 5: (0.2, 0.8, 0.8)}
    monkeypatch.setattr(importlib.import_module("flowrl.train"), "train", trainer(others))
    assert flowrl(monkeypatch, "small.yaml", "--seed", "3") == 0
    inside = "inside: eval/reward/mean and reward/mean are within their bands at all 5 points"
    assert inside in capsys.readouterr().out
    assert flowrl(monkeypatch, "small.yaml", "--seed", "4") == 1
    said = capsys.readouterr().out
    assert "outside at 1 of 5 points, farthest eval/reward/mean at iteration 20: " in said
    assert "0.6 is 0.1507 below 0.7507 to 0.8893 (expected 0.82)" in said
    assert flowrl(monkeypatch, "small.yaml", "--seed", "5") == 1
    assert "0.2107 above 0.4507 to 0.5893 (expected 0.52)" in capsys.readouterr().out
    assert flowrl(monkeypatch, "small.yaml", "--seed", "4", "--smoke") == 0
    assert "stopped at iteration 10 of 20, which says nothing of the rest" in capsys.readouterr().out


def test_the_reward_in_training_is_looked_at_too(recipe: Path) -> None:
    """Samples of stale weights may teach as well; only their reward shows."""
    recorded(recipe)
    verdict = command.reproduce(recipe, [], 3, True, None, trainer({3: (0.2, 0.52, 0.82)}, rise=0.01))
    assert not verdict.inside
    assert verdict.sentence.startswith(
        "outside at 1 of 3 points, farthest reward/mean at iteration 10: 0.055 is 0.195 below"
    )


def test_every_run_has_a_folder_of_its_own(recipe: Path) -> None:
    recorded(recipe)
    runs = [command.reproduce(recipe, [], None, False, None, trainer(RUNS)).run for _ in range(2)]
    assert [run.name for run in runs] == ["small-seed0", "small-seed0-2"]


def test_a_run_that_ended_early_is_outside(recipe: Path) -> None:
    recorded(recipe)
    verdict = command.reproduce(recipe, [], 9, False, None, trainer({9: (0.2, 0.52)}))
    assert not verdict.inside and verdict.sentence == "outside: the run has no eval/reward/mean at iteration 20"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no curve is committed"),
        (["--record", "0,one"], "give seeds, as in 0,1,2"),
        (["--record", "0,1,2", "--smoke"], "leave out --smoke"),
        (["--record", "0,1,2", "train.iterations=3"], "leave out"),
        (["--metric", "reward/mean"], "--metric reward/mean is for --record"),
    ],
)
def test_bad_input_is_2(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: list[str], said: str) -> None:
    monkeypatch.setattr(importlib.import_module("flowrl.train"), "train", trainer(RUNS))
    assert flowrl(monkeypatch, "small.yaml", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_damaged_curve_is_bad_input(recipe: Path) -> None:
    recorded(recipe)
    curve.file_of(recipe).write_text('{"points": []}')
    with pytest.raises(UserError, match="is not a curve that flowrl reproduce --record wrote"):
        curve.read(recipe)


@pytest.mark.slow
def test_a_run_until_an_iteration_is_the_beginning_of_the_whole_run(recipe: Path) -> None:
    """With the learning rates of the whole run."""
    from flowrl.train import train

    small = ["train.iterations=3", "optimizer.schedule=linear", "eval.every=1", "eval.prompts=4", "log.samples=0"]
    whole = train(Config.load(recipe, [*small, "out=whole"]))
    part = train(Config.load(recipe, [*small, "out=part"]), until=2)
    found = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, part)]
    assert [line["step"] for line in found[1]] == [0, 1, 2]
    for left, right in zip(*found, strict=False):
        assert {k: v for k, v in left.items() if "time" not in k and "seconds" not in k} == {
            k: v for k, v in right.items() if "time" not in k and "seconds" not in k
        }
    assert (part / "checkpoints/step_000002").is_dir() and not (part / "checkpoints/step_000003").exists()
