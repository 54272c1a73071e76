"""`flowrl tune` on the quickstart, and what it writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flowrl import cli
from flowrl.commands import tune
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models.causal.policy import CausalPolicy

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["data.prompts=2", "data.group=4", "train.updates=1", "train.threads=1"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return Config.load(CONFIGS / "quickstart.yaml", [*SMALL, "algorithm.sampler.steps=2"])


@pytest.mark.slow
def test_tune_writes_what_train_takes(small: Config, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    config = str(CONFIGS / "quickstart.yaml")
    words = ["tune", config, *SMALL, "algorithm.sampler.steps=2", "--seconds", "0", "--out", "fast.yaml"]
    keys = [word for key in tune.KEYS if key != tune.COMPILE for word in ("--key", key)]
    monkeypatch.setattr(sys, "argv", ["flowrl", *words, *keys])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().out
    assert not ended.value.code and "gradient_checkpointing" in printed
    assert all(key in printed for key in (tune.SAMPLE, tune.DECODE, tune.MICRO))
    written = Path("fast.yaml")
    loaded = Config.load(config, [str(written)])
    assert loaded.train.sample_batch <= 8 and loaded.train.micro_batch <= 16
    with pytest.raises(SystemExit):  # a second time it would overwrite
        cli.main()
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_size_that_runs_out_of_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows beyond four fail as a full accelerator does."""
    monkeypatch.chdir(tmp_path)
    before = CausalPolicy.score

    def scored(self: CausalPolicy, condition: object, tokens: object, *rest: object, **options: object) -> object:
        if len(tokens) > 4:  # type: ignore[arg-type]
            raise RuntimeError("CUDA out of memory")
        return before(self, condition, tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(CausalPolicy, "score", scored)
    loaded = Config.load(CONFIGS / "quickstart_causal_lm.yaml", [*SMALL, "data.group=8"])
    (arm,) = tune.tune(loaded, [tune.MICRO], seconds=0.0)
    sizes = [row.tried.size for row in arm.rows if row.key == tune.MICRO]
    assert sizes == [1, 2, 4, 8] and arm.rows[-1].tried.why == "out of memory"
    assert arm.chosen[tune.MICRO] <= 4 and not arm.stopped
    assert tune.overrides_of(arm, loaded)["train"] == {"micro_batch": arm.chosen[tune.MICRO]}


def test_the_file_is_checked_before_anything_is_tried(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    for name, words in (("there.yaml", "exists already"), ("fast.txt", "end in .yaml"), ("no/fast.yaml", "no folder")):
        with pytest.raises(UserError, match=words):
            tune.check_free(tmp_path / name)


def test_an_unknown_key_is_named(small: Config) -> None:
    with pytest.raises(UserError, match=r"train\.updates"):
        tune.tune(small, ["train.updates"])
