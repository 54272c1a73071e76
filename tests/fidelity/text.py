"""Rollouts of the toy language models on which presets and released formulas are compared, off policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.math.random import derive
from flowrl.models.tiny_text import TinyText
from flowrl.parts.algorithm import Algorithm
from flowrl.step import UpdateSettings, improve
from flowrl.types import ViewRows
from tests.contract.toys import GROUP, PROMPTS, Iteration, Recorder, disturb, roll, small, start


class Mover(Recorder):
    """Notes gradients, and moves the weights after the first of them."""

    def __init__(self, policy: TinyText, size: float) -> None:
        super().__init__(policy.parameters())
        self.policy, self.size = policy, size

    def step(self, closure=None):
        super().step(closure)
        if len(self.gradients) == 1:
            disturb(self.policy, self.size)


@dataclass
class TextTrial:
    """A scored rollout, trained twice: at the policy that sampled, and after its weights have moved."""

    algorithm: Algorithm
    policy: TinyText
    it: Iteration
    gradient: Tensor
    """flowrl's of the second update."""
    metrics: dict[str, float]
    """Of both."""
    live: Tensor
    """log p of the moved weights, with gradient: [N, L], or [N, m, L] of views."""
    old: Tensor
    """Of the policy that sampled."""
    reference: Tensor
    """Of other weights yet."""
    mask: Tensor
    """[N, L] content, or [N, m, L] what views ask for."""
    rows: Any

    @property
    def rewards(self) -> Tensor:
        """[P, G]."""
        return self.it.scores.total.view(len(PROMPTS), GROUP)

    @property
    def content(self) -> Tensor:
        """[N, L] up to the end token."""
        return self.it.rollout.trace.mask

    def gradient_of(self, loss: Tensor) -> Tensor:
        """The gradient of a loss that was written out, flat."""
        found = torch.autograd.grad(loss, self.policy.parameters(), allow_unused=True)
        pairs = zip(found, self.policy.parameters(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def text_trial(name: str, *, off: float = 0.3, **spec: Any) -> TextTrial:
    """A preset at toy sizes with weights that sampled, moved weights and a reference, all different."""
    algorithm = small(name, **spec)
    policy = start(algorithm)
    disturb(policy, 0.2)
    it = roll(algorithm, policy)
    policy.update_ema("sampled", 0.0)
    mover = Mover(policy, off)
    arguments = (algorithm, it.rollout, it.scores, it.advantage)
    metrics = improve(policy, mover, *arguments, UpdateSettings(epochs=2, max_grad_norm=1e9))
    seeds = it.draw.seeds
    if algorithm.redraw:
        seeds = torch.tensor([derive(int(seed), "epoch", 1) for seed in seeds])
    rows = algorithm.estimator.probe(it.rollout, policy, seeds)
    with policy.using("sampled"):
        old = _scores(algorithm, policy, it, rows)
    with policy.using("reference"):
        reference = _scores(algorithm, policy, it, rows)
    live = _scores(algorithm, policy, it, rows)
    mask = rows.targets if isinstance(rows, ViewRows) else it.rollout.trace.mask
    return TextTrial(algorithm, policy, it, mover.gradients[1], metrics, live, old, reference, mask, rows)


def _scores(algorithm: Algorithm, policy: TinyText, it: Iteration, rows: Any) -> Tensor:
    """The tokens' log softmax, read off the table: causal at the sampler's temperature, views at 1."""
    condition: Any = it.rollout.condition
    tokens = it.rollout.trace.tokens
    if not isinstance(rows, ViewRows):
        return _at(policy, condition, tokens, tokens, rows.temperature)
    n, m, _ = rows.inputs.shape
    wide = condition.take(torch.arange(n).repeat_interleave(m))
    share = algorithm.estimator.corrupt
    wide = wide.corrupted(rows.prompt_seeds.flatten(), share, policy.mask_token) if share else wide
    return _at(policy, wide, rows.inputs.flatten(0, 1), rows.labels.flatten(0, 1)).view(n, m, -1)


def _at(policy: TinyText, condition: Any, inputs: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    logits = policy._rows(condition, inputs)[0].double() / temperature
    return logits.log_softmax(dim=-1).gather(-1, labels.clamp(max=policy.vocabulary - 1)[..., None])[..., 0]


def clipped(d: Tensor, a: Tensor, low: float, high: float) -> Tensor:
    """PPO's loss of log-ratios."""
    return torch.maximum(-a * d.exp(), -a * d.exp().clamp(1 - low, 1 + high))


def k3(live: Tensor, other: Tensor) -> Tensor:
    """TRL's ``per_token_kl``."""
    return (other - live).exp() - (other - live) - 1


def mean_over(values: Tensor, mask: Tensor, dims: Any = None) -> Tensor:
    """A masked mean."""
    inside = torch.where(mask, values, 0.0)
    return inside.sum() / mask.sum() if dims is None else inside.sum(dim=dims) / mask.sum(dim=dims)


def centred(rewards: Tensor) -> Tensor:
    """[N] rewards [P, G] less the mean of their group."""
    return (rewards - rewards.mean(dim=1, keepdim=True)).flatten()


def others_mean(rewards: Tensor) -> Tensor:
    """[N] rewards less the mean of the other samples of the group."""
    group = rewards.shape[1]
    return (rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / (group - 1)).flatten()


def standardised(rewards: Tensor, ddof: int, eps: float = 1e-8) -> Tensor:
    """[N] centred, over the group's standard deviation."""
    return (
        (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, correction=ddof, keepdim=True) + eps)
    ).flatten()
