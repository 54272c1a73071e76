"""Old keys of configs: refused by a sentence that says the new one, and translated where a run wrote them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from flowrl import renamed
from flowrl.composition import SLOTS, build, preset_names, shipped_parts
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.evaluation.targets.export_settings import read_export_settings
from flowrl.models.export_folder import ORIGIN_FILE
from flowrl.report.record import read
from flowrl.startup.resume import changed_keys

VALUES = {
    "name": "old",
    "model": {"path": "shapes"},
    "algorithm": {"use": "flow_grpo", "objective": {"low": 1e-5}},
    "rewards": [{"use": "shapes", "weight": 2.0}],
    "train": {"iterations": 3},
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "KEYS", {
        "algorithm.aim": "algorithm.objective",
        "algorithm.objective.lower": "algorithm.objective.low",
        "rewards.factor": "rewards.weight",
        "train.rounds": "train.iterations",
        "seed": "train.seed",
    })  # fmt: skip
    monkeypatch.setattr(renamed, "REMOVED", {"train.turbo": "set train.sample_batch higher"})
    monkeypatch.setattr(renamed, "PARTS", {"objective.PPOClip": "Clipped", "algorithm.old_grpo": "flow_grpo"})


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.rounds=3", "train.rounds was renamed: write train.iterations"),
        ("rewards.0.factor=3", "rewards.0.factor was renamed: write rewards.0.weight"),
        ("seed=3", "seed was renamed: write train.seed"),
        ("train.turbo=3", "train.turbo was removed: set train.sample_batch higher"),
        ("algorithm.aim.low=1", "algorithm.aim was renamed: write algorithm.objective"),
        ("algorithm.objective.lower=1", "algorithm.objective.lower was renamed: write algorithm.objective.low"),
        ("algorithm.objective=PPOClip", "algorithm.objective: PPOClip was renamed: write Clipped"),
        ("algorithm=old_grpo", "algorithm: old_grpo was renamed: write flow_grpo"),
    ],
)
@pytest.mark.usefixtures("table")
def test_an_old_key_is_refused_and_says_the_new_one(tmp_path: Path, override: str, sentence: str) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump(VALUES))
    with pytest.raises(UserError) as caught:
        build(Config.load(file, [override]).algorithm)
    assert sentence in str(caught.value)


@pytest.mark.usefixtures("table")
def test_all_old_names_of_an_algorithm_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        build({"use": "old_grpo", "aim": {"use": "ppo_clip", "low": 1}, "sampler": {"steps": 3}})
    assert str(caught.value).splitlines() == [
        "of an older release:",
        "  - algorithm.aim was renamed: write algorithm.objective",
        "  - algorithm: old_grpo was renamed: write flow_grpo",
    ]


OLD = {
    **{key: value for key, value in VALUES.items() if key != "train"},
    "train": {"rounds": 3, "turbo": True},
    "algorithm": {"use": "old_grpo", "aim": {"use": "PPOClip", "lower": 1e-5}},
    "rewards": [{"use": "shapes", "factor": 2.0}],
    "seed": 4,
}


@pytest.mark.usefixtures("table")
def test_the_config_of_an_older_run_is_translated_wherever_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(OLD))
    with pytest.raises(UserError, match=r"train\.rounds was renamed"):
        Config.load(path)  # somebody's own file of that name
    with pytest.warns(UserWarning, match=r"train\.turbo=True was removed and is not used: set train.sample_batch"):
        run = Config.of_run(path)
    assert run.algorithm == {"use": "flow_grpo", "objective": {"use": "Clipped", "low": 1e-5}}
    assert (run.train.iterations, run.train.seed, run.rewards[0].weight) == (3, 4, 2.0)
    build(run.algorithm)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.warns(UserWarning, match="turbo"):
        assert Config.load(path) == run and read(tmp_path).config["train"] == {"iterations": 3, "seed": 4}
    assert not changed_keys(
        run, Config.of({**VALUES, "train": {"iterations": 3, "seed": 4}, "algorithm": run.algorithm})
    )


@pytest.mark.usefixtures("table")
def test_what_an_export_remembers_is_translated(tmp_path: Path) -> None:
    facts = {"family": "diffusion", "model": {"dtype": "float32"}, "algorithm": OLD["algorithm"],
             "eval": {"sampling_steps": None, "guidance": None, "temperature": None}}  # fmt: skip
    (tmp_path / ORIGIN_FILE).write_text(json.dumps(facts))
    origin = read_export_settings(tmp_path)
    assert origin is not None and origin.algorithm["objective"] == {"use": "Clipped", "low": 1e-5}


@pytest.mark.usefixtures("table")
def test_the_new_key_counts_where_both_are_there_and_nothing_else_changes() -> None:
    both = {"train": {"rounds": 3, "iterations": 5}, "data": {"prompts": 3}, "out": "old_grpo"}
    assert renamed.translated(both) == {"train": {"iterations": 5}, "data": {"prompts": 3}, "out": "old_grpo"}
    assert renamed.translated(VALUES) == VALUES


def test_no_old_name_is_one_of_today() -> None:
    """An old key that is a key of today's at the same place would be translated wrongly, or never be refused."""
    today = set(_keys(Config))
    for old, new in renamed.KEYS.items():
        assert old not in today, f"{old} is a key"
        assert new in today or new.startswith("algorithm."), f"{old} -> {new}, which is no key"
    assert not renamed.REMOVED.keys() & today
    known = {f"{slot}.{name}" for slot in SLOTS for name in shipped_parts(slot)}
    known |= {f"algorithm.{name}" for name in preset_names()}
    assert not renamed.PARTS.keys() & known
    for old, new in renamed.PARTS.items():
        assert f"{old.partition('.')[0]}.{new}" in known, f"{old} -> {new}, which is no part"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"use": "ppo", "credit": ["gae", "kl_in_reward"]},
            "algorithm.credit was renamed: write algorithm.token_advantage",
        ),
        ({"use": "spg", "emphasis": "uniform"}, "algorithm.emphasis was renamed: write algorithm.loss_weight"),
        ({"use": "awm", "followers": []}, "algorithm.followers was renamed: write algorithm.ema_weights"),
        ({"use": "dapo", "drop_cut": True}, "write algorithm.mask_truncated_completions"),
        ({"use": "spg", "estimator": {"plan": "full_mask"}}, "write algorithm.estimator.views"),
        ({"use": "grpo", "selection": "with_credit"}, "was renamed: write nonzero_advantage"),
        ({"use": "grpo", "selection": {"use": "WithCredit"}}, "was renamed: write NonzeroAdvantage"),
        ({"use": "grpo", "advantage": {"use": "plain"}}, "was renamed: write raw_reward"),
        ({"use": "elbo_pg", "estimator": {"views": {"use": "trace", "limit": 128}}}, "was renamed: write trajectory"),
    ],
)
def test_names_of_the_first_releases(spec: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build(spec)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    build(renamed.translated({"algorithm": spec})["algorithm"])


@pytest.mark.parametrize(
    ("override", "new"),
    [
        ("eval.steps=3", "eval.sampling_steps"),
        ("log.images=3", "log.samples"),
        ("log.every_images=3", "log.samples_every"),
        ("model.vllm.memory=0.3", "model.vllm.gpu_memory_utilization"),
    ],
)
def test_keys_of_the_first_releases(tmp_path: Path, override: str, new: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(VALUES))
    with pytest.raises(UserError, match=rf"^command line: {override.partition('=')[0]} was renamed: write {new}$"):
        Config.load(file, [override])
    *sections, key = override.partition("=")[0].split(".")
    value: object = {key: yaml.safe_load(override.partition("=")[2])}
    for section in reversed(sections):
        value = {section: value}
    old = {**VALUES, **value}  # type: ignore[dict-item]
    old["model"] = {"path": "shapes", **old["model"]}  # type: ignore[dict-item]
    file.write_text(yaml.safe_dump(old))
    here: object = Config.of_run(file)
    for part in new.split("."):
        here = getattr(here, part)
    assert here == yaml.safe_load(override.partition("=")[2])


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    from flowrl.config.findings import models_in

    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in models_in(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")
