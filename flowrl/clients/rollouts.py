"""Rollout workers as actors of a Ray cluster: ``rollouts: {workers: 2, ray: {num_gpus: 1}}``.

The trainer sends the weights that sample, once for each version, and each worker's share of a draw, whole groups; it
gets rollouts back. All of it travels as safetensors and plain values. A sample is a function of its seed and the
version of the weights, so a run is what it is without workers, but for the rounding of other batches or devices.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from flowrl.clients import ray as cluster
from flowrl.clients.transfer import pack, pack_draw, unpack_rollout
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.types import Condition, Draw, Rollout, first_of_group

ACTOR = "flowrl.remote.rollout_actor"
"""The module of what runs in the actors. It opens policies, so nothing here may import it."""
WHO = "rollouts"


@dataclass(frozen=True)
class _Begun:
    """Samples that were asked for."""

    seeds: Tensor
    weights: tuple[str, int] | None
    """By which weight set and version."""
    calls: list[tuple[Any, Tensor]]
    """Of every worker, with its rows of the draw."""


class RolloutWorkers:
    """The actors of one training process, and what they were sent.

    Raises `UserError` for a cluster that does not answer, a worker that does not load, fails, dies or takes longer
    than ``rollouts.ray.timeout`` seconds (3600 by default).
    """

    def __init__(self, config: Config) -> None:
        given = dict(config.rollouts.ray)
        self._timeout = float(given.pop("timeout", 3600.0))
        self._ray: Any = cluster.import_ray()
        cluster.join(self._ray, WHO, str(given.pop("address", "auto")))
        kind = importlib.import_module(ACTOR).RolloutActor
        place = self._ray.remote(kind).options(**given)
        self._actors = [place.remote(config.model_dump(mode="json")) for _ in range(config.rollouts.workers)]
        self._sent: tuple[str, int] | None = None
        self._begun: _Begun | None = None
        self._get([actor.facts.remote() for actor in self._actors], "does not load")

    def send(self, policy: Any, weights: str, version: int) -> None:
        """Give the workers a weight set of the policy, unless they have it."""
        if self._sent == (weights, version):
            return
        prefix = f"{weights}/"
        state = policy.weights.state()
        data = pack({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        shared = self._ray.put(data)
        self._get([actor.load.remote(version, shared) for actor in self._actors], "does not take the weights")
        self._sent = (weights, version)

    def begin(self, draw: Draw, rows: int, memory: Mapping[str, Any]) -> None:
        """Ask for samples of the weights that were sent last, and do not wait for them: `sample` hands them out."""
        groups = first_of_group(draw.group).cumsum(dim=0) - 1
        parts = [part for part in torch.arange(int(groups[-1]) + 1).tensor_split(len(self._actors)) if len(part)]
        shares = [torch.isin(groups, part).nonzero()[:, 0] for part in parts]
        packed = [self._ray.put(part) for part in pack_draw(draw)]
        calls = [
            actor.sample.remote(*packed, share.tolist(), rows, dict(memory))
            for actor, share in zip(self._actors, shares, strict=False)
        ]
        self._begun = _Begun(draw.seeds, self._sent, list(zip(calls, shares, strict=True)))

    def sample(
        self, draw: Draw, condition: Condition, sampler: object, rows: int, memory: Mapping[str, Any], device: Any
    ) -> Iterator[tuple[Rollout, Tensor | list[str]]]:
        """Rollouts of the workers, each as soon as it and those before it in the draw are there, with what was decoded
        of it: images [n, 3, H, W] or texts."""
        begun = self._begun
        if begun is None or begun.weights != self._sent or not torch.equal(begun.seeds, draw.seeds):
            self.begin(draw, rows, memory)
            begun = self._begun
        assert begun is not None
        self._begun = None
        for call, share in begun.calls:
            header, data, images, texts = self._get(call, "failed")
            made = unpack_rollout(header, data, condition.take(share), sampler, device)
            if not torch.equal(made.seeds, draw.seeds[share]):
                raise UserError(f"{type(sampler).__name__} makes other rows than were drawn; set rollouts.workers=0")
            yield made, texts if images is None else load(images)["images"]

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _get(self, calls: Any, what: str) -> Any:
        try:
            return self._ray.get(calls, timeout=self._timeout)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"a worker of rollouts.workers {what}: {cluster.cause(error)}") from error


@contextmanager
def rollout_workers(config: Config) -> Iterator[RolloutWorkers | None]:
    """The workers that a config asks for, None without any; they end with the context. Raises as `RolloutWorkers`."""
    workers = RolloutWorkers(config) if config.rollouts.workers else None
    try:
        yield workers
    finally:
        if workers is not None:
            workers.close()
