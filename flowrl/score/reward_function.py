"""What every reward is called as, whatever its own signature: a function of samples."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from flowrl.types import Samples


class RewardFunction(Protocol):
    """A reward as a function of samples alone, and of their group numbers [N] where it is ``grouped``."""

    @property
    def grouped(self) -> bool:
        """Whether every call needs whole groups."""
        ...

    @property
    def style(self) -> str:
        """Whose signature it has: flowrl, flow_grpo, TRL, verl or Flow-Factory."""
        ...

    @property
    def version(self) -> str | None:
        """What it says of its weights and preprocessing; None if it says nothing."""
        ...

    def __call__(self, samples: Samples, group: Tensor | None = None) -> object:
        """N scores in any form that `flowrl.clients.results.as_scores` reads."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class AdaptedReward(ABC):
    """A user's function or object, called in its own way. ``version`` is its attribute of that name, and ``close`` its
    method, where it has them."""

    grouped: bool
    style: str

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function: Any = function
        self.name = name
        self.parameters = inspect.signature(function).parameters

    @property
    def version(self) -> str | None:
        """What the reward says of its weights and preprocessing."""
        version = getattr(self.function, "version", None)
        return None if version is None else str(version)

    @abstractmethod
    def __call__(self, samples: Samples, group: Tensor | None = None) -> object:
        """As of `RewardFunction`."""

    def close(self) -> None:
        """Let the reward free what it holds."""
        if "close" in dir(self.function):
            self.function.close()


def takes_anything(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a signature has ``**kwargs``."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
