"""`flowrl doctor` finds what is planted, and says what to change. The command itself is in `test_cli`."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl.commands.doctor import check_config
from flowrl.commands.trial import Finding
from flowrl.config import Config
from flowrl.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGES, TEXTS = "quickstart.yaml", "quickstart_causal_lm.yaml"


def _findings(config: str, *overrides: str) -> list[Finding]:
    """All but what is well; a config that is refused at once is a finding too."""
    try:
        loaded = Config.load(CONFIGS / config, ["out=run", *overrides])
    except UserError as error:
        return [Finding("config", "bad", str(error))]
    return [finding for finding in check_config(loaded) if finding.state != "ok"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.txt").write_text("a red square\na blue circle\n")
    Path("mine.py").write_text(
        "def flat(images, prompts): return [1.0 for _ in prompts]\n"
        "def bright(images, prompts): return images.mean(dim=(1, 2, 3))\n"
        "def broken(images, prompts): return [None + 1 for _ in prompts]\n"
    )


PLANTED = {
    "reward on a missing device": (IMAGES, ["rewards=[{use: pickscore, device: cuda}]"], "use device: cpu"),
    "a device for a reward without a model": (IMAGES, ["rewards=[{use: shapes, device: cuda}]"], "remove its 'device"),
    "model on a missing device": (IMAGES, ["model.device=cuda"], "use device: cpu"),
    "LoRA target that matches nothing": (IMAGES, ["model.lora.targets=[to_qq]"], "set model.lora.targets to some of"),
    "a group of one": (IMAGES, ["data.group=1"], "needs at least 2"),
    "a mistyped key": (IMAGES, ["train.micro_bach=4"], "did you mean 'train.micro_batch'"),
    "a warm-up without an end": (IMAGES, ["optimizer.warmup=100000"], "lower it"),
    "another family's algorithm": (IMAGES, ["model.path=sudoku"], "change the algorithm"),
    "a reward that raises": (IMAGES, ["rewards=[mine.py:broken]"], "mine.py:3"),
    "blocks that do not divide": ("quickstart_masked_lm.yaml", ["algorithm.sampler.block=5"], "change one of them"),
    "too little memory": (IMAGES, ["data.prompts=800000"], "lower: data.prompts, data.group, train.images"),
    "a size that does not divide": (IMAGES, ["model.call.height=30"], "divisible by 16"),
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.slow
def test_a_mistake_stops_the_doctor(planted: str) -> None:
    config, overrides, fix = PLANTED[planted]
    last = _findings(config, *overrides)[-1]
    assert last.state == "bad" and fix in last.detail, last


@pytest.mark.slow
def test_text_rewards_need_a_text_in_the_prompt() -> None:
    found = _findings(IMAGES, "rewards=[ocr]", "data.train=plain.txt", "data.test=plain.txt")
    notes = "\n".join(finding.detail for finding in found)
    assert "cannot score 2 of 2 prompts, such as 'a red square'; it needs text in quotes" in notes
    assert "2 of 2 prompts of data.test are in data.train too" in notes
    assert "data.train has 2: lower it, and raise data.group" in notes


@pytest.mark.slow
def test_a_flat_reward_teaches_nothing() -> None:
    found = _findings(IMAGES, "rewards=[mine.py:flat]")
    assert [finding.name for finding in found] == ["signal"]
    assert _findings(IMAGES, "rewards=[mine.py:bright]") == []


@pytest.mark.slow
def test_a_clip_finer_than_rounding() -> None:
    # Rows one by one, because in equal batches rounding may be the same.
    found = _findings(IMAGES, "algorithm={use: flow_grpo, clip: 1.0e-12}", "train.micro_batch=1")
    assert any("widen the clip" in finding.detail for finding in found), found


@pytest.mark.slow
def test_completions_that_are_cut() -> None:
    found = {finding.name: finding.detail for finding in _findings(TEXTS, "algorithm.sampler.length=2")}
    assert "raise algorithm.sampler.length" in found["completion"]


@pytest.mark.parametrize("config", [IMAGES, TEXTS, "quickstart_masked_lm.yaml"])
@pytest.mark.slow
def test_the_quickstarts_are_well(config: str) -> None:
    assert _findings(config) == []
