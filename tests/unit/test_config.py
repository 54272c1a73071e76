"""The config: strict keys, clear errors, overrides, a round trip, and the work that follows from it."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from flowrl.composition import build
from flowrl.config import Config
from flowrl.config.listing import config_table
from flowrl.config.overrides import apply_overrides
from flowrl.config.yaml_text import parse_yaml
from flowrl.errors import UserError
from flowrl.records.directory import RunDirectory
from flowrl.startup.preflight import check_run
from flowrl.startup.workload import workload

MINIMAL = """
name: quick
model: {path: shapes}
algorithm: flow_grpo
rewards: [shapes]
train: {iterations: 3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text(MINIMAL)
    return path


def test_defaults_shorthand_and_overrides(file: Path) -> None:
    config = Config.load(
        file, ["optimizer.lr=1e-5", "rewards.0.weight=2", "algorithm.kl=0", "model.call.guidance_scale=3.5"]
    )
    assert config.optimizer.lr == 1e-5
    assert (config.rewards[0].use, config.rewards[0].weight) == ("shapes", 2.0)
    assert config.algorithm == {"use": "flow_grpo", "kl": 0}
    assert config.model.call == {"guidance_scale": 3.5}
    assert (config.data.prompts, config.train.ema, config.directory) == (18, 0.9, Path("runs/quick"))


def test_resolved_yaml_loads_to_an_equal_config(file: Path) -> None:
    config = Config.load(file, ["optimizer.eps=1e-20", "train.ema=null", "eval.every=0"])
    again = Config.of(parse_yaml(config.to_yaml()))
    assert again == config
    assert again.fingerprint == config.fingerprint != Config.load(file).fingerprint


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.iterations=1", ["command line: unknown key trian.iterations", "'train'"]),
        ("model.lora.rnk=3", ["command line: unknown key model.lora.rnk=3", "'model.lora.rank'"]),
        ("rewards.0.wieght=1", ["command line: unknown key rewards.0.wieght", "'rewards.0.weight'"]),
        ("train.lr=1e-4", ["train.lr=0.0001", "'optimizer.lr'"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1", "greater than or equal to 0"]),
        ("optimizer.lr=.nan", ["optimizer.lr=nan", "finite"]),
        ("train.iterations=many", ["train.iterations='many'", "integer"]),
        ("model.dtype=fp8", ["model.dtype='fp8'", "bfloat16"]),
        ("model.path=null", ["model.path=None", "string"]),
        ("rewards=[]", ["rewards=[]", "at least 1"]),
        ("rewards.0.weight=0", ["every weight is 0"]),
        ("algorithm=3", ["algorithm=3", "flowrl algorithms"]),
        ("name=a/b", ["name='a/b'"]),
        ("data.test=null", ["data.test is null", "eval.every=0"]),
        ("train.ema=null", ["train.ema is null", "eval.weights=live"]),
        ("train.updates=217", ["train.updates=217", "216 samples"]),
        ("optimizer.warmup=4", ["optimizer.warmup=4", "3 optimiser steps"]),
        ("rewards.7.weight=2", ["rewards.7.weight=2", "index from 0 to 0"]),
        ("train.seed.x=2", ["train.seed", "{'x': 2}"]),
        ("iterations", ["'iterations'", "key=value"]),
        ("train.seed=[1", ["train.seed=[1", "not valid YAML"]),
        ("data.template={question}", ["data.template={'question': None}", """'data.template="{question}"'"""]),
        ("data.template=Question: {question}", ["YAML reads a mapping", "put it in quotes"]),
        ("data.template=[INST]", ["YAML reads a list", """'data.template="..."'"""]),
        ("data.template={question} = ", ["not valid YAML", """'data.template="..."'"""]),
    ],
)
def test_mistakes_are_named_with_the_remedy(file: Path, override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Config.load(file, [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_mistake_is_blamed_on_where_it_was_written(file: Path) -> None:
    file.write_text(MINIMAL.replace("{iterations: 3}", "{iterations: 3, sed: 1}"))
    with pytest.raises(UserError) as caught:
        Config.load(file, ["optimizer.lr=-1", "train.updates=2", "data.test=null"])
    inside, _, outside = str(caught.value).partition("\n")
    assert sorted((inside, outside)) == sorted((
        "command line: optimizer.lr=-1: input should be greater than or equal to 0",
        f"{file}: unknown key train.sed=1; did you mean 'train.seed'?",
    ))  # fmt: skip
    file.write_text(MINIMAL)
    with pytest.raises(UserError, match=r"^command line: train\.updates=217 is more than the 216 samples"):
        Config.load(file, ["train.updates=217"])
    file.write_text(MINIMAL.replace("{iterations: 3}", "{iterations: 3, updates: 217}"))
    with pytest.raises(UserError, match=rf"^{file}: train\.updates=217 is more"):
        Config.load(file, ["train.epochs=2"])


def test_every_mistake_is_reported_at_once(file: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)optimizer.lr=-1.*train.sed=1.*did you mean 'train.seed'"):
        Config.load(file, ["optimizer.lr=-1", "train.sed=1"])


def test_conflict_of_full_training_and_adapter(file: Path) -> None:
    with pytest.raises(UserError, match=r"model.full=true means|model.full=true trains all weights"):
        Config.load(file, ["model.full=true", "model.lora.rank=8"])
    assert Config.load(file, ["model.full=true"]).model.full


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", ["occurs twice", "line 2"]),
        ("name: [a\n", ["not valid YAML", "line"]),
        ("- a\n", ["keys and values", "list"]),
        ("", ["keys and values", "NoneType"]),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Config.load(path)
    assert all(word in str(caught.value) for word in [*words, str(path)]) or "line" in str(caught.value)


def test_missing_file_and_missing_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Config.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"(?s)model is missing.*train is missing"):
        Config.of({"name": "a", "algorithm": "flow_grpo", "rewards": ["shapes"]})


def test_numbers_in_yaml_are_numbers() -> None:
    assert parse_yaml("[1e-4, 1.5E3, -2e5, 1e4x, 12]") == [1e-4, 1500.0, -2e5, "1e4x", 12]


def test_a_template_in_quotes_is_a_text(file: Path) -> None:
    assert Config.load(file, ['data.template="{question}"']).data.template == "{question}"


def test_overrides_leave_their_input_alone() -> None:
    values = {"rewards": ["shapes"], "train": {"seed": 1}}
    changed = apply_overrides(values, ["rewards.0.weight=2", "train.seed=3"])
    assert changed == {"rewards": [{"use": "shapes", "weight": 2}], "train": {"seed": 3}}
    assert values == {"rewards": ["shapes"], "train": {"seed": 1}}


def test_explain_shows_origin_and_meaning(file: Path) -> None:
    rows = {line.split()[0]: line for line in config_table(Config.load(file, ["optimizer.lr=1e-5"])).splitlines()}
    assert "set" in rows["optimizer.lr"] and "learning rate" in rows["optimizer.lr"]
    assert "default" in rows["optimizer.eps"]
    assert "set" in rows["rewards.0.use"] and "default" in rows["rewards.0.weight"]


def test_every_key_has_a_meaning(file: Path) -> None:
    assert all(line.rsplit("  ", 1)[1].strip() for line in config_table(Config.load(file)).splitlines())


def test_geometry_counts_what_a_run_evaluates(file: Path) -> None:
    config = Config.load(file, ["data.prompts=4", "data.group=3", "train.updates=2", "train.epochs=2"])
    counts = workload(config, build("flow_grpo"))  # 10 steps, the last not trained, KL to the reference
    assert (counts.samples, counts.decisions, counts.optimizer_steps) == (12, 9, 4)
    assert counts.sampling_forwards == 12 * 10
    assert counts.training_forwards == 12 * 9 * 2
    assert counts.frozen_forwards == 12 * 9 * 2  # the reference; the old policy is known from the rollout
    assert counts.forwards == 3 * (120 + 216 + 216)


def test_geometry_counts_a_measured_old_policy(file: Path) -> None:
    once, twice = Config.load(file), Config.load(file, ["train.updates=2"])
    algorithm = build("fpo")
    extra = workload(twice, algorithm).frozen_forwards - workload(once, algorithm).frozen_forwards
    assert extra == 216 * algorithm.estimator.draws  # type: ignore[attr-defined]


def test_impossible_groups(file: Path) -> None:
    with pytest.raises(UserError, match=r"data.group=1.*at least 2"):
        check_run(Config.load(file, ["data.group=1"]))


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("algorithm=flow_gpro", "did you mean 'flow_grpo'"),
        ("model.path=shaps", "did you mean 'shapes'"),
        ("model.path=./nowhere", "there is no folder ./nowhere"),
        ("rewards=[shape]", "did you mean 'shapes'"),
        ("rewards=[nowhere.py:f]", "nowhere.py does not exist"),
        ("data.train=nowhere.txt", "nowhere.txt do not exist"),
        ("data.test=shapes:tset", "did you mean 'test'"),
        ("model.adapter=nowhere", "model.adapter"),
        ("model.attention=flsh", "model.attention: attention backend 'flsh' is not available.*did you mean 'flash'"),
        ("model.attention=sage", r"Please install `sageattention>=[\d.]*`; or set model.attention: null"),
    ],
)
def test_what_does_not_exist_is_found_before_loading(file: Path, override: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        check_run(Config.load(file, [override]))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("flsh", "did you mean 'flash'"),
        ("xformers", "there is none of that name; known: eager, flash, "),
        ("flash", "flash-attn is not installed"),
    ],
)
def test_attention_of_language_models_is_checked_before_loading(file: Path, name: str, match: str) -> None:
    overrides = ["model.path=sudoku", "algorithm=grpo", "rewards=[sudoku]", "data.train=sudoku:train", "eval.every=0"]
    if name == "flash" and (find_spec("flash_attn") or find_spec("kernels")):
        pytest.skip("flash-attn is installed")
    with pytest.raises(UserError, match=f"model.attention: attention {name!r} is not available: .*{match}"):
        check_run(Config.load(file, [*overrides, "data.test=sudoku:test", f"model.attention={name}"]))


BOMB = "x0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"x{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.iterations: 5", ["'train.iterations'", "train: {iterations: 5}"]),
        ("'a b': 5", ["a b=5", "known: algorithm"]),
        ("1: 5", ["key 1", "quotes"]),
        ("? [1, 2]\n: 5", ["unhashable"]),
        (BOMB, ["more than 20,000 values"]),
        ("x: &x [*x]", ["contains itself"]),
        ("x: " + "[" * 5000 + "]" * 5000, ["40 levels"]),
        ("x: " + "[" * 100 + "]" * 100, ["40 levels"]),
        ("x: " + "1" * 6000, ["not valid YAML", "digits"]),
        ("x: !!python/object/apply:os.system [ls]", ["tag", "leave it out"]),
        ("x: !!set {a, b}", ["tag"]),
        ("x: " + "a" * (1 << 21), ["2,0", "at most 1,048,576"]),
        ("x: " + "a" * 100_000, ["unknown key x="]),
        ("? " + "k" * 100_000 + "\n: 1", ["unknown key kkk"]),
    ],
)
def test_strange_yaml_is_one_short_sentence(file: Path, text: str, words: list[str]) -> None:
    file.write_text(MINIMAL + text)
    with pytest.raises(UserError) as caught:
        Config.load(file)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert len(said) <= 600 and "\n" not in said


@pytest.mark.parametrize(
    "override",
    [
        "train.iterations=true",
        "train.iterations='5'",
        "train.seed=99999999999999999999",
        "optimizer.lr=true",
        "optimizer.lr='1e-4'",
        "optimizer.betas=[true, 0.9]",
        "eval.guidance=true",
        "model.full=1",
        "model.full='yes'",
        "model.path=5",
        "model.lora.targets=[1]",
        "rewards.0.weight=true",
        "rewards.0.timeout=true",
        "name=on",
        "algorithm.kl=true",
        "algorithm.steps=true",
        "algorithm.objective.low=true",
        "algorithm.objective.low='1'",
        "algorithm.sampler.steps=2.5",
        "algorithm.sampler.dynamics={use: cps, noise: true}",
        "algorithm.sampler.dynamics={use: cps, noise: .inf}",
        "data.prompts=100000000",
    ],
)
def test_values_of_another_type_are_not_converted(file: Path, override: str) -> None:
    with pytest.raises(UserError) as caught:
        check_run(Config.load(file, [override]))
    assert override.partition("=")[0].rpartition(".")[2] in str(caught.value)


def test_numbers_lists_and_dates_that_yaml_writes_otherwise(file: Path) -> None:
    config = Config.load(
        file, ["train.seed=1e3", "optimizer.betas=[0, 0.5]", "name=2024-01-01", "algorithm.sampler.steps=8.0"]
    )
    assert (config.train.seed, config.optimizer.betas, config.name) == (1000, (0.0, 0.5), "2024-01-01")
    assert isinstance(config.train.seed, int) and build(config.algorithm).sampler.forwards == 8


def test_a_run_directory_that_cannot_be_made_is_told_before_loading(file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, word in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "lies below the file"),
        (tmp_path / ("long" * 100), "too long"),
        ("/proc/flowrl/run", "cannot be"),
        ("a\x00b", "null"),
    ]:
        with pytest.raises(UserError, match=word) as caught, RunDirectory(check_of(file, out)):
            pass
        assert str(caught.value).startswith("out: ") and len(str(caught.value)) <= 600
    assert Config.load(file, ["out=~/run"]).directory == Path.home() / "run"


def check_of(file: Path, out: Path | str) -> Path:
    return check_run(Config.load(file, [f"out={json.dumps(str(out))}"])).config.directory


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("itertions=3", "'train.iterations'"),
        ("iterations=3", "'train.iterations'"),
        ("train.itertions=3", "'train.iterations'"),
        ("algoritm=grpo", "'algorithm'"),
        ("algoritm.use=grpo", "'algorithm'"),
        ("prompts=3", "'data.prompts' or 'eval.prompts'"),
    ],
)
def test_a_mistyped_key_is_suggested_in_full(file: Path, override: str, meant: str) -> None:
    with pytest.raises(UserError) as raised:
        Config.load(file, [override])
    assert str(raised.value).endswith(f"; did you mean {meant}?")


def test_a_file_of_overrides_is_merged_in_turn(file: Path, tmp_path: Path) -> None:
    fast = tmp_path / "fast.yaml"
    fast.write_text(
        "train: {micro_batch: 4, sample_batch: 8}\nalgorithm: {sampler: {steps: 12}}\nrewards: [jpeg_size]\n"
    )
    loaded = Config.load(file, ["train.micro_batch=2", str(fast), "train.sample_batch=16"])
    assert (loaded.train.micro_batch, loaded.train.sample_batch, loaded.train.iterations) == (4, 16, 3)
    assert loaded.algorithm == {"use": "flow_grpo", "sampler": {"steps": 12}}
    assert [reward.use for reward in loaded.rewards] == ["jpeg_size"]
    fast.write_text("")
    assert "should hold keys and values" in _error(file, str(fast))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {micro_bach: 4}", ["did you mean 'train.micro_batch'"]),
        ("train: {micro_batch: many}", ["train.micro_batch='many'"]),
        ("train: [", ["not valid YAML"]),
        ("name: {first: 1}", ["name is 'quick'", "first"]),
    ],
)
def test_a_mistake_in_a_file_of_overrides_names_the_file(file: Path, text: str, words: list[str]) -> None:
    fast = file.with_name("fast.yaml")
    fast.write_text(text)
    found = _error(file, "train.seed=1", str(fast))
    assert all(word in found for word in ["fast.yaml", *words]) and "quick.yaml" not in found


def test_a_file_of_overrides_that_is_not_there(file: Path) -> None:
    assert "nowhere.yaml does not exist" in _error(file, "nowhere.yaml")


def _error(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        Config.load(file, overrides)
    return str(caught.value)
