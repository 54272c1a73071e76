"""What runs in an actor of a Ray cluster, started by `flowrl.clients.rollouts`: a policy that samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from safetensors.torch import load
from torch import Tensor

from flowrl.clients.transfer import pack, pack_rollout, unpack_draw
from flowrl.composition import build
from flowrl.config import Config
from flowrl.parts.coefficients import with_coefficients
from flowrl.samplers.chunks import sample
from flowrl.startup.policies import open_policy
from flowrl.types import Condition, Draw, Policy, Rollout, Sampler

PUSHED = "pushed"
"""The weight set that the trainer sends."""


class RolloutActor:
    """A policy, opened as the run's config says, that samples with the weights it was sent last."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = Config.of(config)
        if self._config.train.threads is not None:
            torch.set_num_threads(self._config.train.threads)
        self._algorithm = build(self._config.algorithm)
        self._policy = open_policy(self._config)
        self._policy.weights.drop_reference(hashed=False)
        self._version = 0

    def facts(self) -> str:
        """Where it computes; answers once the policy is loaded."""
        return str(self._policy.device)

    def load(self, version: int, weights: bytes) -> None:
        """Sample with these weights, a safetensors file of the trained parameters, from here on."""
        self._policy.weights.load({f"{PUSHED}/{name}": tensor for name, tensor in load(weights).items()})
        self._version = version

    def sample(
        self, header: str, numbers: bytes, share: Sequence[int], rows: int, memory: Mapping[str, Any]
    ) -> tuple[str, bytes, bytes | None, list[str] | None]:
        """Make ``share``, some samples of a packed draw, ``rows`` at a time: the packed rollout, and its decoded images
        or completions. All prompts are encoded, in the batch in which the trainer does it: so they are the same."""
        draw = unpack_draw(header, numbers)
        sampler = with_coefficients(self._algorithm, dict(memory)).sampler
        images: list[Tensor] = []
        texts: list[str] = []

        def watched(policy: Policy, condition: Condition, part: Draw) -> Rollout:
            made = sampler(policy, condition, part)
            decoded = policy.decode(made.final)
            if isinstance(decoded, Tensor):
                images.append(decoded)
            else:
                texts.extend(decoded)
            return made

        here = torch.tensor(share)
        condition = self._policy.condition(draw.prompts).take(here)
        with self._policy.using(PUSHED) as policy:
            rollout = sample(cast(Sampler, watched), policy, condition, draw.take(here), rows)
        packed = pack_rollout(replace(rollout, version=self._version))
        return *packed, pack({"images": torch.cat(images)}) if images else None, None if images else texts
