"""Every key of a config file: its type, default, range and meaning. ``model`` and ``rewards`` have files of their
own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from flowrl import renamed
from flowrl.config.findings import explain_errors
from flowrl.config.model import LoRAConfig, ModelConfig
from flowrl.config.overrides import apply_overrides, read_overrides
from flowrl.config.reward import Reward, RewardConfig
from flowrl.config.section import Fraction, Section
from flowrl.config.teacher import TeacherConfig
from flowrl.config.yaml_text import read_config, read_yaml, write_yaml
from flowrl.errors import UserError

STAGES = "stages"
"""The key of a config that is several runs (`flowrl.config.stages`)."""


class DataConfig(Section):
    """Prompts, and how many of them make an iteration."""

    train: str = Field(
        default="shapes:train",
        description="world:split, .txt, .jsonl, .json, .parquet, .csv, .tsv, a folder of pictures or "
        "hf:name[:config]:split; [:100] at the end takes a part; gym:NAME = one prompt, the environment's name",
    )
    test: str | None = Field(default="shapes:test", description="prompts of the evaluation; null = none")
    columns: dict[str, str | None] = Field(
        default={},
        description="new name: column, such as prompt: question or answer: reward_model.ground_truth; null = leave out",
    )
    template: str | None = Field(
        default=None, description="the prompt with {column} in it; {{ and }} are braces; null = the column 'prompt'"
    )
    overlong: Literal["error", "drop", "truncate"] = Field(
        default="error",
        description="language: prompts without room for a completion (truncate cuts their beginning), or with a "
        "recorded completion that is longer than the sampler's (truncate cuts its end)",
    )
    prompts: PositiveInt = Field(default=18, description="prompts per iteration")
    group: PositiveInt = Field(default=12, description="samples per prompt")


def _preset(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("use"), str)):
        return value
    raise ValueError("give the name of a preset, or {use: preset, part: {field: value}}; see `flowrl algorithms`")


Preset = Annotated[str | dict[str, Any], BeforeValidator(_preset)]


class OptimizerConfig(Section):
    """The optimiser and its rates."""

    use: str = Field(
        default="AdamW",
        min_length=1,
        description="a class of torch.optim, bitsandbytes.optim (AdamW8bit, ...) or prodigyopt (Prodigy) by name, or "
        "package.module.Class; betas, weight_decay and eps go to those that have them",
    )
    options: dict[str, Any] = Field(default={}, description="further arguments of the class")
    masters: bool = Field(
        default=True,
        description="model.trained_dtype bfloat16: float32 copies of the weights collect the steps; false = none, and "
        "steps are rounded stochastically",
    )
    lr: NonNegativeFloat = Field(default=3e-4, description="learning rate")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="decay of the gradient's two moments")
    weight_decay: NonNegativeFloat = Field(default=1e-4, description="decoupled weight decay")
    eps: PositiveFloat = Field(default=1e-8, description="added to the root of the second moment")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="gradients of a larger norm are scaled down to it")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="lr after the warm-up")
    warmup: NonNegativeInt = Field(default=0, description="optimiser steps over which lr rises from 0")
    critic_lr: PositiveFloat | None = Field(default=None, description="learning rate of a critic; null = 10 x lr")
    critic_warmup: NonNegativeInt = Field(default=0, description="iterations at first in which only a critic learns")
    loss_scale: PositiveFloat = Field(
        default=65536.0,
        description="float16: the loss is multiplied by it at first; halved when a gradient overflows (that step is "
        "skipped), doubled after 2000 steps without",
    )


class TrainConfig(Section):
    """How long, and in what portions."""

    iterations: PositiveInt = Field(description="rounds of sampling and updating")
    updates: PositiveInt = Field(default=1, description="optimiser steps per pass over the samples")
    epochs: PositiveInt = Field(default=1, description="passes over the samples of an iteration")
    split: Literal["random", "even"] = Field(
        default="random",
        description="which samples are of which update: at random, or evenly many of every group, so that several "
        "processes have equally much to do in each",
    )
    micro_batch: PositiveInt = Field(
        default=64, description="network rows per forward and backward; changes memory, not results"
    )
    micro_tokens: PositiveInt | None = Field(
        default=None,
        description="language: tokens per forward and backward instead of micro_batch, padding included: rows of "
        "similar length together, so that a long completion pads no short ones; null = micro_batch",
    )
    sample_batch: PositiveInt = Field(default=256, description="samples per forward of the sampler; as micro_batch")
    staleness: NonNegativeInt = Field(
        default=0,
        description="how many iterations older than the trained weights those are that sample, as where both work at "
        "the same time; needs an importance correction, and keeps so many copies of the weights",
    )
    images: Literal["auto", "float32", "uint8"] = Field(
        default="auto",
        description="how scored images are kept; uint8: as a PNG file, a quarter of the memory; auto ="
        " uint8 above 1 GiB an iteration off the CPU, else float32",
    )
    seed: NonNegativeInt = Field(default=0, description="all randomness of the run follows from it")
    threads: PositiveInt | None = Field(
        default=None, description="CPU threads of torch, in each process; null = torch's default"
    )
    rank_timeout: PositiveFloat = Field(
        default=1800.0,
        description="several processes: seconds that they wait for one that is behind; one without a sign of life is "
        "given up after 60 of them",
    )
    ema: Fraction | None = Field(default=0.9, description="decay of averaged weights, per iteration; null = none")


class EvalConfig(Section):
    """Evaluation during training."""

    every: NonNegativeInt = Field(default=10, description="iterations between evaluations; 0 = never")
    prompts: PositiveInt | None = Field(default=None, description="the first so many of data.test; null = all")
    samples: PositiveInt = Field(default=1, description="samples per prompt")
    sampling_steps: PositiveInt | None = Field(default=None, description="of the sampler; null = as in training")
    guidance: NonNegativeFloat | None = Field(default=None, description="guidance scale; null = as in training")
    temperature: NonNegativeFloat | None = Field(
        default=None, description="of language models; 0 = greedy, null = as in training"
    )
    prefill: str | None = Field(
        default=None, description="of language models: how answers begin; null = model.prefill, as in training"
    )
    weights: Literal["ema", "live"] = Field(default="ema", description="which weights are evaluated")
    batch: PositiveInt | None = Field(default=None, description="samples per forward; null = train.sample_batch")


class CheckpointConfig(Section):
    """What is kept of the run."""

    every: NonNegativeInt = Field(default=20, description="iterations between checkpoints; 0 = only the last")
    keep: PositiveInt = Field(default=2, description="latest checkpoints to keep, besides the best")
    best: str | None = Field(
        default="eval/reward/mean", description="metric (higher is better) of the best one; null = none"
    )


class LogConfig(Section):
    """What is shown and written while training."""

    samples: NonNegativeInt = Field(default=8, description="samples saved each time")
    samples_every: PositiveInt = Field(default=10, description="iterations between saved samples")
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default=[], description="experiment trackers to feed as well"
    )
    project: str = Field(default="flowrl", description="project name for the trackers")


class MonitorConfig(Section):
    """Alarms for reward hacking: samples are compared with the base model's. Self-checks of the training itself."""

    samples: NonNegativeInt = Field(default=200, description="samples measured each time; 0 = no alarms of samples")
    limit: PositiveFloat = Field(
        default=1.0, description="robust standard deviations of the base model's samples that a median may move"
    )
    evaluations: PositiveInt = Field(
        default=3, description="evaluations over which a watched reward falls while the trained one rises"
    )
    kl: PositiveFloat | None = Field(default=None, description="largest KL to the reference; null = any")
    action: Literal["none", "stop", "rollback"] = Field(
        default="none", description="on an alarm: go on; save and stop; stop with the last checkpoint before it"
    )
    checks: NonNegativeInt = Field(
        default=100, description="iterations between self-checks, beside those of iterations 1, 2 and 10; 0 = none"
    )


class RolloutsConfig(Section):
    """Sampling in other processes, on other GPUs or machines."""

    workers: NonNegativeInt = Field(
        default=0, description="actors of a Ray cluster that sample, for each training process; 0 = it samples itself"
    )
    ray: dict[str, Any] = Field(
        default={},
        description="their placement, such as num_gpus: 1, and the cluster's address (local starts one), timeout in "
        "seconds",
    )


class Config(Section):
    """A run."""

    name: str = Field(pattern=r"^\w[\w.\-]*$", description="name of the run")
    model: ModelConfig
    algorithm: Preset = Field(description="preset, or {use: preset, part: {field: value}}")
    data: DataConfig = DataConfig()
    rewards: list[Reward] = Field(
        default=[RewardConfig(use="feedback")],
        min_length=1,
        description="what is rewarded; may be left out where an algorithm reads what a data set says of its samples",
    )
    on_nan: Literal["raise", "drop_sample", "drop_group"] = Field(
        default="raise", description="when a reward could not score: stop, or leave out the sample or its group"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    teachers: dict[str, TeacherConfig] = Field(
        default={},
        description="frozen policies that the algorithm compares with, by name, such as teacher: {path: ...} of gkd",
    )
    rollouts: RolloutsConfig = RolloutsConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    monitor: MonitorConfig = MonitorConfig()
    out: str | None = Field(default=None, min_length=1, description="run directory; null = runs/<name>")

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply overrides (``key.path=value``, or YAML files of some keys, a later one over an
        earlier), check everything. Raises `UserError`."""
        found = read_overrides(overrides)
        places = {override.key: override.place for override in found}
        return cls.of(apply_overrides(read_config(Path(path)), found), str(path), places)

    @classmethod
    def of_run(cls, path: Path) -> Self:
        """The config that a run wrote, be it one of an older release (`flowrl.renamed`). Raises `UserError`."""
        return cls.of(renamed.translated(read_yaml(path)), str(path))

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "config", overridden: Mapping[str, str] | None = None) -> Self:
        """A config from plain data. Raises `UserError` naming every bad key, and as its place ``source``, or that
        of the override that set it (``overridden``: the places by key)."""
        if STAGES in values:
            raise UserError(
                f"{source}: it has several stages, which `flowrl train` runs one after the other; give one of "
                "them, such as the config.yaml of its run"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise explain_errors(error, cls, source, overridden or {}) from None

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.out).expanduser() if self.out else Path("runs") / self.name

    def to_yaml(self) -> str:
        """The resolved config: every key with its value; loading it gives an equal config."""
        return write_yaml(self.model_dump(mode="json"))

    @property
    def fingerprint(self) -> str:
        """sha256 of the resolved config."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [message for message, wrong in self._conflicts() if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _conflicts(self) -> list[tuple[str, bool]]:
        """Statements about keys that do not fit together, and whether each is true."""
        samples, steps = self.data.prompts * self.data.group, self.train.updates * self.train.epochs
        names = [reward.name for reward in self.rewards if reward.name]
        updates, iterations = self.train.updates, self.train.iterations
        return [
            (
                f"train.updates={updates} is more than the {samples} samples of an iteration "
                "(data.prompts x data.group); lower it",
                updates > samples,
            ),
            (
                f"optimizer.warmup={self.optimizer.warmup} is longer than the run's {iterations * steps} "
                "optimiser steps; lower it",
                self.optimizer.warmup > iterations * steps,
            ),
            (
                "model.full=true trains all weights, so model.lora means nothing; remove one of them",
                self.model.full and self.model.lora != LoRAConfig(),
            ),
            (
                f"model.full=true trains all weights, which model.quantize={self.model.quantize} holds in a few bits; "
                "remove one of them",
                self.model.full and self.model.quantize is not None,
            ),
            (
                f"model.trained_dtype=bfloat16 needs a network in bfloat16, and model.dtype is {self.model.dtype}; set "
                "model.dtype=bfloat16",
                self.model.trained_dtype == "bfloat16" and self.model.dtype != "bfloat16",
            ),
            (
                "optimizer.masters=false means nothing while model.trained_dtype is float32; remove it, or set "
                "model.trained_dtype=bfloat16",
                not self.optimizer.masters and self.model.trained_dtype == "float32",
            ),
            (
                "model.full=true cannot start from model.adapter; set full=false, or merge the adapter first",
                self.model.full and self.model.adapter is not None,
            ),
            (
                f"eval.every={self.eval.every} needs prompts, but data.test is null; set eval.every=0 or data.test",
                self.eval.every > 0 and self.data.test is None,
            ),
            (
                "eval.weights='ema' needs averaged weights, but train.ema is null; set eval.weights=live",
                self.eval.every > 0 and self.eval.weights == "ema" and self.train.ema is None,
            ),
            (f"rewards: two have the same name ({', '.join(names)}); rename one", len(set(names)) < len(names)),
            (
                "rewards: every weight is 0, so there is nothing to learn from; give one a weight",
                all(reward.factor == 0 for reward in self.rewards),
            ),
        ]
