"""Keys of an entry of ``rewards``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from flowrl.config.section import Section


class OnErrorConfig(Section):
    """What becomes of samples that a reward failed on."""

    retry: NonNegativeInt = Field(default=0, description="further tries of a call that failed or could not score")
    then: Literal["raise", "drop_group"] = Field(default="raise", description="stop, or leave their groups out")


def _policy(value: object) -> object:
    return {"then": value} if isinstance(value, str) else value


def _gate(value: object) -> object:
    if value is None or value == "multiply" or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError("give multiply, or the least score that opens the gate")


class RewardConfig(Section):
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
    frames: PositiveInt | None = Field(
        default=None, description="of videos: score so many frames as images, evenly spaced, and take their mean"
    )
    applies: dict[str, Any] = Field(
        default={}, description="scores only prompts with these columns: {column: value or list of values}"
    )
    gate: Annotated[Literal["multiply"] | float | None, BeforeValidator(_gate)] = Field(
        default=None, description="the total is multiplied by this score (in [0, 1]), or 0 where it is below a number"
    )
    on_error: Annotated[OnErrorConfig | None, BeforeValidator(_policy)] = Field(
        default=None, description="raise, drop_group or {retry: n, then: ...}; null = raise, and on_nan for NaN"
    )
    messages: bool | None = Field(
        default=None, description="prompts and completions as lists of messages (TRL); null = as the reward reads them"
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


def _named(value: object) -> object:
    return {"use": value} if isinstance(value, str) else value


Reward = Annotated[RewardConfig, BeforeValidator(_named)]
