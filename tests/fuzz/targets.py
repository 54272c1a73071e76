"""What is fuzzed: configs, presets, prompts, run directories, model folders, adapters and the command line."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import typer
import yaml

from flowrl import cli
from flowrl.composition import build, describe, preset_names
from flowrl.config import Config
from flowrl.config.listing import config_table
from flowrl.config.yaml_text import read_yaml
from flowrl.data import load_prompts
from flowrl.errors import UserError, limit_of
from flowrl.records import checkpoint, checkpoint_folder
from flowrl.records.directory import RunDirectory
from flowrl.report import write
from flowrl.score import load_rewards
from flowrl.startup.preflight import check_run
from flowrl.startup.resume import start_or_resume
from flowrl.types import Prompt, Samples, Scores
from tests.fuzz.damage import damage_folder, damaged, garbled, odd

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
TINY = {
    "name": "tiny",
    "model": {"path": "shapes", "lora": {"rank": 2, "alpha": 4}},
    "algorithm": {"use": "diffusion_nft", "sampler": {"steps": 2}},
    "rewards": [{"use": "jpeg_compressibility", "name": "size"}],
    "data": {"prompts": 2, "group": 2},
    "train": {"iterations": 2},
}


def _dump(value: Any) -> bytes:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


def _overrides(rng: random.Random, config: Any) -> list[str]:
    keys = [
        "train.iterations",
        "model.path",
        "rewards.0.weight",
        "algorithm.sampler.steps",
        "out",
        "a.b",
        "",
        "rewards",
    ]
    keys += list(config) if isinstance(config, dict) else []
    return [
        f"{rng.choice(keys)}{rng.choice(['=', '=', '=', '', ':'])}{_said(odd(rng))}"
        for _ in range(rng.choice([0, 0, 1]))
    ]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def config_values(rng: random.Random, folder: Path) -> None:
    """A shipped config with one to three values damaged, and odd overrides."""
    values = read_yaml(rng.choice(SHIPPED)) if rng.random() < 0.7 else json.loads(json.dumps(TINY))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        values = damaged(values, rng)
    path = folder / "config.yaml"
    path.write_bytes(_dump(values))
    config = Config.load(path, _overrides(rng, values))
    check_run(config)
    config_table(config)
    assert Config.of(yaml.safe_load(config.to_yaml())) == config


def config_text(rng: random.Random, folder: Path) -> None:
    """A shipped config whose text was garbled."""
    path = folder / "config.yaml"
    text = rng.choice(SHIPPED).read_bytes()
    for _ in range(rng.choice([0, 1, 1, 1, 3])):
        text = garbled(text, rng)
    path.write_bytes(text)
    check_run(Config.load(path))


def config_schema(rng: random.Random, folder: Path) -> None:
    """A small config in which any key of the schema has any value."""
    values = json.loads(json.dumps(TINY))
    for _ in range(rng.choice([1, 2, 3])):
        section = rng.choice([name for name in Config.model_fields if name != "rewards"])
        inner = getattr(Config.model_fields[section].annotation, "model_fields", None)
        if inner is None:
            values[section] = odd(rng)
        else:
            values.setdefault(section, {})[rng.choice(list(inner))] = odd(rng)
    if rng.random() < 0.5:
        from flowrl.config import RewardConfig

        values["rewards"][0][rng.choice(list(RewardConfig.model_fields))] = odd(rng)
    check_run(Config.of(values))


def presets(rng: random.Random, folder: Path) -> None:
    """A preset with odd values in the fields of its parts."""
    name = rng.choice(preset_names())
    spec: dict[str, Any] = {"use": name}
    here, parts = spec, describe(build(name))
    while True:
        keys = [key for key in parts if key not in ("use", "families")]
        key = rng.choice(keys) if keys else "x"
        inner = parts.get(key)
        if isinstance(inner, dict) and rng.random() < 0.8:
            here[key] = {}
            if rng.random() < 0.2:
                here[key] = {"use": rng.choice([inner["use"], "kl", "cps", "all_samples", odd(rng)])}
            here, parts = here[key], inner
            continue
        here[key] = [damaged(inner, rng)] if isinstance(inner, list) else odd(rng)
        break
    describe(build(spec))


def prompts(rng: random.Random, folder: Path) -> None:
    """Prompt files of every kind, garbled or with odd values."""
    rows: Any = [{"prompt": f"a circle {i}", "answer": str(i), "tags": ["a", {"b": i}]} for i in range(4)]
    rows.append({"prompt": [{"role": "user", "content": "two dogs"}], "answer": None})
    if rng.random() < 0.7:
        rows = damaged(rows, rng)
    suffix = rng.choice([".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet"])
    listed = rows if isinstance(rows, list) else [rows]
    text = {
        ".txt": "\n".join(map(str, listed)),
        ".jsonl": "\n".join(json.dumps(row) for row in listed),
        ".json": json.dumps(rows),
    }.get(suffix, "prompt,answer\na,1\nb,2\n".replace(",", "\t" if suffix == ".tsv" else ","))
    path = folder / f"prompts{suffix}"
    content = text.encode("utf-8", "surrogatepass")
    path.write_bytes(garbled(content, rng) if rng.random() < 0.5 else content)
    spec = str(path) if rng.random() < 0.9 else _said(odd(rng))
    load_prompts(spec)


def rewards(rng: random.Random, folder: Path) -> None:
    """Files of rewards that are wrong in some way, loaded and called."""
    answers = ["None", "1", "'x'", "[None]", "{}", "[float('inf')] * len(prompts)", "1 / 0", "exit(3)", "images[0]"]
    answers += ["__import__('os')._exit(3)", "iter(prompts)", "images"]
    answer = "[1.0] * len(prompts)" if rng.random() < 0.5 else rng.choice(answers)
    heads = ["def reward(images, prompts, **columns):", "async def reward(images, prompts):", "def reward(x):"]
    heads += ["class reward:\n  def __call__(self, images, prompts):", "def reward(prompts, completions, **columns):"]
    heads += ["def other(images, prompts):"]
    head = "def reward(images, prompts):" if rng.random() < 0.5 else rng.choice(heads)
    first = rng.choice(["import nothing", "exit(1)", "1 / 0", "raise SystemExit"]) if rng.random() < 0.1 else ""
    text = f"{first}\n{head}\n    return {answer}\n"
    path = folder / "mine.py"
    content = text.encode()
    path.write_bytes(garbled(content, rng) if rng.random() < 0.3 else content)
    spec: Any = {"use": f"{path}:reward"}
    if rng.random() < 0.3:
        spec[rng.choice(["options", "applies", "batch_size", "on_error", "gate", "device", "name"])] = odd(rng)
    loaded = load_rewards([spec if rng.random() < 0.9 else odd(rng)])
    try:
        loaded(Samples([Prompt("a", 0), Prompt("b", 1)], images=torch.rand(2, 3, 4, 4)), torch.arange(2))
    finally:
        loaded.close()


@functools.cache
def _run_template() -> Path:
    """A run's directory with metrics, samples and two checkpoints, written by the parts that write them."""
    path = Path(tempfile.mkdtemp(prefix="flowrl-fuzz-run-"))
    config = Config.of(TINY)
    group = torch.tensor([0, 0, 1, 1])
    samples = Samples([Prompt(f"a {i}", i) for i in group.tolist()], images=torch.rand(4, 3, 8, 8))
    scores = Scores(
        torch.rand(4, 1, dtype=torch.float64), torch.ones(1), ("size",), group, group, torch.ones(4, dtype=torch.bool)
    )
    with RunDirectory(path) as run:
        run.start(config.to_yaml())
        run.checkpoints.mkdir()
        for step in (1, 2):
            run.log(
                {"step": step, "samples": 4 * step, "time": 1.0, "reward/mean": 0.5, "eval/reward/mean": 0.1 * step}
            )
            for place in (run.samples_path, run.heldout_path):
                run.save_samples(step, samples, scores, torch.zeros(4), seeds=torch.arange(4), folder=place)
            tensors = {"weights/live/a": torch.rand(3), "optimizer/0/step": torch.tensor(1.0)}
            values = {"progress": {"iteration": step}, "memory": {}}
            checkpoint.save(
                run.checkpoints, step, tensors, values, {}, {"eval/reward/mean": 0.1 * step}, best="eval/reward/mean"
            )
    return path


def runs(rng: random.Random, folder: Path) -> None:
    """A damaged run's directory: reported, resumed, its checkpoints read."""
    path = folder / "run"
    shutil.copytree(_run_template(), path)
    if rng.random() < 0.9:
        damage_folder(path, rng)
    kind = rng.randrange(4)
    if kind == 0:
        write(path)
        return
    if kind == 1:
        for found in checkpoint_folder.finished(path / "checkpoints"):
            checkpoint.load(found)
        return
    if kind == 2:
        Config.load(RunDirectory.open(path).config_path)
        checkpoint_folder.best(path / "checkpoints")
    with RunDirectory(path) as run:
        start_or_resume(
            Config.of(TINY), run, rng.choice([None, "auto", str(path), str(path / "checkpoints" / "step_000002")])
        )
        run.metrics()


FLAGS = ("--dry-run", "--yaml", "--no-base", "--json")
WORDS = {
    "train": ["--resume"],
    "config": ["--yaml"],
    "eval": ["--suite", "--out", "--checkpoint", "--samples", "--limit", "--seed", "--steps", "--guidance", "--length",
             "--temperature", "--no-base", "--family", "--model", "--data", "--option", "--json"],
    "sample": ["--prompt", "--out", "--count", "--seed", "--steps", "--guidance", "--family", "--weights", "--device"],
    "export": ["--to", "--out", "--checkpoint", "--weights"],
    "checkpoints": ["--json"],
    "report": [],
    "algorithms": ["--diff", "--json"],
    "rewards": ["--json"],
    "test-reward": ["--prompts", "--count", "--size", "--text", "--option"],
    "compare": ["--seeds", "--out"],
}  # fmt: skip
GIVEN = {
    "train": ["c.yaml", "--dry-run"], "config": ["c.yaml"], "compare": ["c.yaml", "train.iterations=0"],
    "test-reward": ["r.py:f"], "algorithms": [], "rewards": [], "eval": ["run", "--suite", "rewards"],
    "sample": ["run", "--prompt", "a", "--out", "o"], "export": ["run", "--to", "peft", "--out", "o"],
}  # fmt: skip
"""What a command is usually given; a run otherwise."""


@functools.cache
def _command() -> Any:
    return typer.main.get_command(cli.app)


def arguments(rng: random.Random, folder: Path) -> None:
    """Command lines with odd words in odd places; none of them opens a model."""
    shutil.copytree(_run_template(), folder / "run")
    nothing = _dump({**TINY, "model": {"path": str(folder / "nothing")}})
    (folder / "run" / "config.yaml").write_bytes(nothing)
    (folder / "c.yaml").write_bytes(nothing)
    (folder / "r.py").write_text("def f(images, prompts): return images.mean(dim=(1, 2, 3))\n")
    command = rng.choice(list(WORDS))
    words = list(GIVEN.get(command, ["run"]))
    if words and rng.random() < 0.2:
        words[0] = _said(odd(rng))
    for _ in range(rng.choice([0, 1, 1, 2])):
        options = WORDS[command]
        words.append(rng.choice(options) if options and rng.random() < 0.8 else _said(odd(rng)))
        if words[-1] not in FLAGS and rng.random() < 0.9:
            words.append(rng.choice(["1", "2", "a", "auto"]) if rng.random() < 0.4 else _said(odd(rng)))
    words = [word for word in words if word != "shapes"]  # whose model would be opened
    with contextlib.chdir(folder), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            _command().main([command, *words], standalone_mode=False)
        except OSError as error:  # as `cli.main` says it
            limit = limit_of(error)
            if limit is None:
                raise
            raise UserError(limit) from error


def warm_up() -> None:
    """Make what the cases copy, and import what they use, before the clock runs."""
    folder = Path(tempfile.mkdtemp(prefix="flowrl-fuzz-warm-"))
    for number, case in enumerate(QUICK.values()):
        for attempt in range(3):
            place = folder / f"{number}-{attempt}"
            place.mkdir()
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                case(random.Random(attempt), place)
    shutil.rmtree(folder)


QUICK = {
    "config values": config_values,
    "config text": config_text,
    "config schema": config_schema,
    "presets": presets,
    "prompts": prompts,
    "rewards": rewards,
    "runs": runs,
    "arguments": arguments,
}
"""Targets that need no model."""
