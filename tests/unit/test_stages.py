"""Several runs in one config: what each is told, what is checked before the first begins, and where they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flowrl.cli import app
from flowrl.commands import stages as driver
from flowrl.commands.stages import check_stages, train_stages
from flowrl.config import Config
from flowrl.config.stages import Stage, load_stages, stages_of
from flowrl.errors import UserError
from flowrl.startup.resume import load_checkpoint

SOLVED = [
    {"prompt": f"1 2 {n}   =  {n + 3}:", "completion": f"1+2+{n}", "numbers": [1, 2, n], "target": n + 3}
    for n in (3, 4)
]


def values_of(folder: Path, **changes: Any) -> dict[str, Any]:
    (folder / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SOLVED))
    imitate = {"algorithm": {"use": "sft", "length": 14}, "data": {"train": str(folder / "solved.jsonl"), "test": None}}
    return {
        "name": "warm",
        "out": str(folder / "warm"),
        "model": {"path": "countdown", "lora": {"rank": 4, "alpha": 8}},
        "algorithm": {"use": "grpo", "length": 14, "kl": 0.02},
        "data": {"train": "countdown:train", "test": None, "prompts": 2},
        "rewards": ["countdown"],
        "train": {"iterations": 2, "threads": 1},
        "eval": {"every": 0},
        "monitor": {"samples": 0},
        "stages": [{"name": "sft", **imitate}, {"data": {"group": 4}, "train": {"iterations": 3}}],
        **changes,
    }


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, words)


def found(values: dict[str, Any]) -> list[Stage]:
    stages = stages_of(values)
    assert stages is not None
    return stages


def test_a_stage_has_the_common_keys_with_its_own_over_them(tmp_path: Path) -> None:
    first, second = found(values_of(tmp_path))
    assert (first.name, second.name) == ("sft", "2_grpo")
    assert (first.config.name, first.config.directory) == ("warm-sft", tmp_path / "warm" / "sft")
    assert first.config.algorithm == {"use": "sft", "length": 14}  # a preset of its own: no kl of the other's
    assert (first.config.data.prompts, first.config.data.test, second.config.data.group) == (2, None, 4)
    assert (first.config.train.iterations, second.config.train.iterations, second.config.train.threads) == (2, 3, 1)
    assert second.config.algorithm == {"use": "grpo", "length": 14, "kl": 0.02}
    values = values_of(tmp_path)
    values["stages"][1]["algorithm"] = {"kl": 0.0}
    assert found(values)[1].config.algorithm == {"use": "grpo", "length": 14, "kl": 0.0}
    later = second.after(adapter="somewhere")
    assert later.config.model.adapter == "somewhere" and later.config.model_fields_set == second.config.model_fields_set
    assert stages_of({"name": "x"}) is None


def test_overrides_reach_the_common_keys_and_those_of_a_stage(tmp_path: Path) -> None:
    (path := tmp_path / "c.yaml").write_text(yaml.safe_dump(values_of(tmp_path)))
    stages = load_stages(path, ["optimizer.lr=0.5", "stages.1.train.iterations=9"])
    assert stages is not None
    assert [stage.config.optimizer.lr for stage in stages] == [0.5, 0.5]
    assert [stage.config.train.iterations for stage in stages] == [2, 9]
    with pytest.raises(UserError, match=r"several stages, which `flowrl train` runs"):
        Config.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": []}, "stages should be a list"),
        ({"stages": ["sft"]}, "stages should be a list"),
        ({"stages": [{"name": "a/b"}]}, "names a folder"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "two stages are called a"),
        ({"stages": [{"out": "x"}]}, "a stage has no out"),
        (
            {"stages": [{"name": "a"}, {"name": "b", "model": {"adapter": "x"}}]},
            r"stages.1 \(b\): model.adapter is the",
        ),
        ({"stages": [{"name": "a", "trian": {"iterations": 2}}]}, r"stages.0 \(a\)(.|\n)*did you mean 'train'"),
        ({"stages": [{"name": "a", "train": {"iteration": 2}}]}, "did you mean 'train.iterations'|iterations"),
    ],
)
def test_what_is_wrong_with_the_keys_is_said_with_the_stage(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        stages_of(values_of(tmp_path, **change))


def test_all_stages_are_checked_before_the_first_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of(tmp_path)
    values["stages"][1]["data"] = {"group": 1}
    (path := tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"stage 2_grpo: data.group=1"):
        check_stages(found(values))
    assert isinstance(invoke("train", str(path)).exception, UserError) and not (tmp_path / "warm").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UserError, match="they run in one process"):
        check_stages(found(values_of(tmp_path)))


class Runs:
    """In place of training: notes what was asked for, and leaves a checkpoint of so many iterations."""

    def __init__(self, ends: dict[str, int]) -> None:
        self.ends, self.asked = ends, []

    def __call__(self, config: Config, *, resume: str | None, allow_changed: bool) -> Path:
        self.asked.append((config.name, config.model.adapter, resume))
        step = config.directory / "checkpoints" / f"step_{self.ends.get(config.name, config.train.iterations):06d}"
        (step / "peft").mkdir(parents=True)
        (step / "manifest.json").write_text("{}")
        return config.directory


def test_a_resumed_config_goes_on_in_the_stage_that_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, said = found(values_of(tmp_path)), []
    adapter = str(tmp_path / "warm" / "sft" / "checkpoints" / "step_000002" / "peft")
    first = Runs({"warm-sft": 1})
    monkeypatch.setattr(driver, "train", first)
    train_stages(stages, say=said.append)
    assert first.asked == [("warm-sft", None, None)] and "2_grpo did not begin" in said[-1]
    with pytest.raises(UserError, match="already holds a run; continue with --resume auto"):
        train_stages(stages)
    with pytest.raises(UserError, match="--resume auto"):
        train_stages(stages, resume="runs/x")
    second = Runs({})
    monkeypatch.setattr(driver, "train", second)
    assert train_stages(stages, resume="auto") == [tmp_path / "warm" / "sft", tmp_path / "warm" / "2_grpo"]
    assert second.asked == [("warm-sft", None, "auto"), ("warm-2_grpo", adapter, "auto")]
    third = Runs({})
    monkeypatch.setattr(driver, "train", third)
    train_stages(stages, resume="auto")
    assert third.asked == []


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_a_stage_starts_from_the_weights_of_the_one_before(full: bool, tmp_path: Path) -> None:
    model = {"path": "countdown", **({"full": True} if full else {"lora": {"rank": 4, "alpha": 8}})}
    values = values_of(tmp_path, model=model, train={"iterations": 3, "threads": 1, "ema": None})
    values["eval"] = {"every": 100, "samples": 2, "prompts": 8, "weights": "live"}
    values["data"]["test"] = "countdown:test"
    values["stages"][0]["data"]["test"] = "countdown:test"
    values["optimizer"] = {"lr": 3e-2}
    (path := tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    assert invoke("train", str(path), "--dry-run").output.count("network forwards in total") == 2
    assert invoke("train", str(path)).exit_code == 0
    scores = [
        [
            line["eval/reward/mean"]
            for line in map(json.loads, (tmp_path / "warm" / name / "metrics.jsonl").read_text().splitlines())
            if "eval/reward/mean" in line
        ]
        for name in ("sft", "2_grpo")
    ]
    assert scores[0][-1] == pytest.approx(scores[1][0], abs=1e-6) and scores[0][0] != scores[0][-1]
    assert "finished before" in invoke("train", str(path), "--resume", "auto").output
    assert load_checkpoint(tmp_path / "warm" / "2_grpo").step == 3
    assert (tmp_path / "warm" / "2_grpo" / "report.html").is_file()
