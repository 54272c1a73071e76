"""Every key of a config file: its type, default, range and meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from flowrl.config.errors import explain_errors
from flowrl.config.reading import apply_overrides, read_yaml, write_yaml

Family = Literal["diffusion", "masked", "causal"]
_LANGUAGE = ("chat", "system", "max_prompt")
FAMILY_KEYS: dict[Family, tuple[str, ...]] = {
    "diffusion": ("call",),
    "masked": (*_LANGUAGE, "mask_token_id", "shift_logits"),
    "causal": (*_LANGUAGE, "critic"),
}
"""Keys of ``model`` that only some families have."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class LoRAConfig(_Section):
    """Low-rank adapters."""

    rank: PositiveInt = Field(default=32, description="rank of the update of each adapted layer")
    alpha: PositiveFloat = Field(default=64, description="scale: the update is multiplied by alpha / rank")
    targets: list[str] | None = Field(
        default=None,
        description="names of the layers to adapt; null = attention projections, language: all linear layers",
    )
    dropout: Fraction = Field(default=0.0, description="dropout on the adapters' input while training")


class ModelConfig(_Section):
    """The policy that is fine-tuned."""

    path: str = Field(
        min_length=1, description="folder, hub id (owner/name) or embedded world (shapes, sudoku, countdown)"
    )
    call: dict[str, Any] = Field(
        default={}, description="extra arguments of the pipeline's call, such as guidance_scale"
    )
    lora: LoRAConfig = Field(default=LoRAConfig(), description="low-rank adapters")
    full: bool = Field(default=False, description="train all weights of the network instead of LoRA")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="precision of the frozen network"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, slower")
    attention: str | None = Field(
        default=None, description="attention backend of diffusers or transformers; null = its default"
    )
    compile: bool = Field(default=False, description="torch.compile the network")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    adapter: str | None = Field(default=None, description="LoRA folder to start from")
    chat: bool | None = Field(
        default=None, description="language: wrap prompts in the tokenizer's chat template; null = if it has one"
    )
    system: str | None = Field(default=None, description="language: system message of the chat template")
    max_prompt: PositiveInt | None = Field(default=None, description="language: longest prompt in tokens; null = any")
    critic: bool = Field(default=False, description="causal: add a value head (algorithm ppo)")
    mask_token_id: NonNegativeInt | None = Field(default=None, description="masked: id; null = the tokenizer's")
    shift_logits: bool | None = Field(
        default=None, description="masked: position i is predicted at i - 1, as by Dream; null = by model type"
    )

    def arguments(self, family: Family) -> dict[str, Any]:
        """Keyword arguments of `load_policy`. The adapter is loaded afterwards (`runtime.restore.open_policy`)."""
        from flowrl.models import LoRAOptions  # torch: only when a model is about to be loaded

        foreign = [key for keys in FAMILY_KEYS.values() for key in keys if key not in FAMILY_KEYS[family]]
        plain = self.model_dump(exclude={"path", "lora", "adapter", *foreign})
        given = self.lora.model_dump(exclude_none=True)
        if "targets" in given:
            given["targets"] = tuple(given["targets"])
        adapted = None if self.full else LoRAOptions(**given)
        return {"path_or_pipeline": self.path, "family": family, "lora": adapted, **plain}

    def strangers(self, family: Family) -> list[str]:
        """Keys that were set, but mean nothing for a family of models."""
        foreign = {key for keys in FAMILY_KEYS.values() for key in keys} - set(FAMILY_KEYS[family])
        return sorted(key for key in foreign if getattr(self, key) != type(self).model_fields[key].default)


class DataConfig(_Section):
    """Prompts, and how many of them make an iteration."""

    train: str = Field(
        default="shapes:train",
        description="world:split, .txt, .jsonl, .json, .parquet or hf:name[:config]:split",
    )
    test: str | None = Field(default="shapes:test", description="prompts of the evaluation; null = none")
    prompts: PositiveInt = Field(default=18, description="prompts per iteration")
    group: PositiveInt = Field(default=12, description="samples per prompt")


class OnErrorConfig(_Section):
    """What becomes of samples that a reward failed on."""

    retry: NonNegativeInt = Field(default=0, description="further tries of a call that failed or could not score")
    then: Literal["raise", "drop_group"] = Field(default="raise", description="stop, or leave their groups out")


def _policy(value: Any) -> Any:
    return {"then": value} if isinstance(value, str) else value


def _gate(value: Any) -> Any:
    if value is None or value == "multiply" or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError("give multiply, or the least score that opens the gate")


class RewardConfig(_Section):
    """One reward."""

    use: str = Field(min_length=1, description="name, path.py:function or module:function")
    weight: float = Field(default=1.0, description="factor in the total; 0 = only watched")
    train: bool = Field(default=True, description="false = held out: scored and shown, never learned from (weight 0)")
    name: str | None = Field(default=None, description="name in metrics; null = the function's")
    options: dict[str, Any] = Field(default={}, description="keyword arguments of the reward")
    device: str | None = Field(default=None, description="device of a reward that holds a model")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="precision of a reward that holds a model; null = its own"
    )
    batch_size: PositiveInt | None = Field(default=None, description="most samples per call; null = all there are")
    applies: dict[str, Any] = Field(
        default={}, description="scores only prompts with these columns: {column: value or list of values}"
    )
    gate: Annotated[Literal["multiply"] | float | None, BeforeValidator(_gate)] = Field(
        default=None, description="the total is multiplied by this score (in [0, 1]), or 0 where it is below a number"
    )
    on_error: Annotated[OnErrorConfig | None, BeforeValidator(_policy)] = Field(
        default=None, description="raise, drop_group or {retry: n, then: ...}; null = raise, and on_nan for NaN"
    )
    overlap: bool = Field(default=True, description="score in the background while the next samples are made")
    process: bool = Field(default=False, description="score in a process of its own, for rewards that keep a CPU busy")
    timeout: PositiveFloat | None = Field(default=None, description="seconds of a call; needs process: true")

    @property
    def factor(self) -> float:
        """The weight in the total: 0 for one that is held out or is a gate."""
        return self.weight if self.train and self.gate is None else 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gate is not None and self.weight != 1:
            raise ValueError(f"{self.use}: a gate is not added up, so weight={self.weight:g} means nothing; remove it")
        if self.gate is not None and not self.train:
            raise ValueError(f"{self.use}: train=false only watches, so gate={self.gate} means nothing; remove one")
        if self.timeout is not None and not self.process:
            raise ValueError(f"{self.use}: only a process can be stopped; set process=true, or remove timeout")
        return self


def _named(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


def _preset(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("use"), str)):
        return value
    raise ValueError("give the name of a preset, or {use: preset, part: {field: value}}; see `flowrl algorithms`")


Reward = Annotated[RewardConfig, BeforeValidator(_named)]
Preset = Annotated[str | dict[str, Any], BeforeValidator(_preset)]


class OptimizerConfig(_Section):
    """AdamW."""

    lr: NonNegativeFloat = Field(default=3e-4, description="learning rate")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="decay of the gradient's two moments")
    weight_decay: NonNegativeFloat = Field(default=1e-4, description="decoupled weight decay")
    eps: PositiveFloat = Field(default=1e-8, description="added to the root of the second moment")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="gradients of a larger norm are scaled down to it")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="constant", description="lr after the warm-up")
    warmup: NonNegativeInt = Field(default=0, description="optimiser steps over which lr rises from 0")


class TrainConfig(_Section):
    """How long, and in what portions."""

    iterations: PositiveInt = Field(description="rounds of sampling and updating")
    updates: PositiveInt = Field(default=1, description="optimiser steps per pass over the samples")
    epochs: PositiveInt = Field(default=1, description="passes over the samples of an iteration")
    micro_batch: PositiveInt = Field(
        default=64, description="network rows per forward and backward; changes memory, not results"
    )
    sample_batch: PositiveInt = Field(default=256, description="samples per forward of the sampler; as micro_batch")
    seed: NonNegativeInt = Field(default=0, description="all randomness of the run follows from it")
    threads: PositiveInt | None = Field(default=None, description="CPU threads of torch; null = torch's default")
    ema: Fraction | None = Field(default=0.9, description="decay of averaged weights, per iteration; null = none")


class EvalConfig(_Section):
    """Evaluation during training."""

    every: NonNegativeInt = Field(default=10, description="iterations between evaluations; 0 = never")
    prompts: PositiveInt | None = Field(default=None, description="the first so many of data.test; null = all")
    samples: PositiveInt = Field(default=1, description="samples per prompt")
    steps: PositiveInt | None = Field(default=None, description="sampling steps; null = as in training")
    guidance: NonNegativeFloat | None = Field(default=None, description="guidance scale; null = as in training")
    temperature: NonNegativeFloat | None = Field(
        default=None, description="of language models; 0 = greedy, null = as in training"
    )
    weights: Literal["ema", "live"] = Field(default="ema", description="which weights are evaluated")
    batch: PositiveInt | None = Field(default=None, description="samples per forward; null = train.sample_batch")


class CheckpointConfig(_Section):
    """What is kept of the run."""

    every: NonNegativeInt = Field(default=20, description="iterations between checkpoints; 0 = only the last")
    keep: PositiveInt = Field(default=2, description="latest checkpoints to keep, besides the best")
    best: str | None = Field(
        default="eval/reward/mean", description="metric (higher is better) of the best one; null = none"
    )


class LogConfig(_Section):
    """What is shown and written while training."""

    images: NonNegativeInt = Field(default=8, description="samples saved each time")
    every_images: PositiveInt = Field(default=10, description="iterations between saved samples")
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default=[], description="experiment trackers to feed as well"
    )
    project: str = Field(default="flowrl", description="project name for the trackers")


class MonitorConfig(_Section):
    """Alarms for reward hacking: samples are compared with the base model's."""

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


class Config(_Section):
    """A run."""

    name: str = Field(pattern=r"^\w[\w.\-]*$", description="name of the run")
    model: ModelConfig
    algorithm: Preset = Field(description="preset, or {use: preset, part: {field: value}}")
    data: DataConfig = DataConfig()
    rewards: list[Reward] = Field(min_length=1, description="what is rewarded")
    on_nan: Literal["raise", "drop_sample", "drop_group"] = Field(
        default="raise", description="when a reward could not score: stop, or leave out the sample or its group"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    monitor: MonitorConfig = MonitorConfig()
    out: str | None = Field(default=None, description="run directory; null = runs/<name>")

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply ``key.path=value`` overrides, check everything. Raises `UserError`."""
        return cls.of(apply_overrides(read_yaml(Path(path)), overrides), str(path))

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        """A config from plain data. Raises `UserError` naming every bad key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise explain_errors(error, cls, source) from None

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.out) if self.out else Path("runs") / self.name

    def to_yaml(self) -> str:
        """The resolved config: every key with its value; loading it gives an equal config."""
        return write_yaml(self.model_dump(mode="json"))

    @property
    def fingerprint(self) -> str:
        """sha256 of the resolved config."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()

    def explain(self) -> str:
        """Every key, its value, where it is from and what it means, as aligned plain text."""
        from flowrl.config.explain import explain

        return explain(self)

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
