"""One batch of samples: what evaluation, `flowrl sample` and `flowrl doctor` have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.trajectories import Trajectories, draw_trajectories
from flowrl.types import Draw, Episodes, FlowPolicy, Policy, Sampler, Samples, Share, TokenPolicy, TokenTrace

BATCH_NUMBERS = 2**20  # latent numbers per batch: four images of 1024 px with 16 latent channels, on any GPU
BATCH_IMAGES = 64
BATCH_LOGITS = 2**28  # logits per batch, 1 GiB: 16 completions of 128 tokens from a vocabulary of 128k
BATCH_COMPLETIONS = 256


@dataclass(frozen=True)
class Generated:
    """What a policy made for n prompts."""

    samples: Samples
    tokens: tuple[int, ...] = ()
    """Of each completion, its end token included; decisions of an episode."""
    drawn: Trajectories | None = None
    """Pictures of episodes, where they were asked for."""


def generate(policy: Policy, sampler: Sampler, weights: str, draw: Draw, *, draws: bool = False) -> Generated:
    """The samples of a draw, with the weight set ``weights``; with ``draws`` also pictures of episodes."""
    with torch.no_grad(), policy.using(weights):
        rollout = sampler(policy, policy.condition(draw.prompts), draw)
        decoded = policy.decode(rollout.final)
        drawn = None
        if draws and isinstance(rollout.trace, Episodes):
            first, alone = torch.zeros(1, dtype=torch.int64), Share.alone(len(draw))
            drawn = draw_trajectories(sampler, rollout, alone, first, draw.prompts, policy)
    if isinstance(decoded, Tensor):
        return Generated(Samples(draw.prompts, images=decoded))
    if isinstance(rollout.trace, Episodes):
        made = tuple(rollout.trace.alive.sum(dim=1).tolist())
        return Generated(Samples(draw.prompts, completions=decoded), made, drawn)
    assert isinstance(rollout.trace, TokenTrace)
    return Generated(Samples(draw.prompts, completions=decoded), tuple(rollout.trace.mask.sum(dim=1).tolist()))


def batch_size(policy: Policy, sampler: Sampler) -> int:
    """Samples at a time for a policy, by its vocabulary or the shape of its latents."""
    if isinstance(sampler, MaskedSampler | CausalSampler):
        vocabulary = cast(TokenPolicy, policy).vocabulary
        return max(1, min(BATCH_COMPLETIONS, BATCH_LOGITS // (sampler.length * vocabulary)))
    if isinstance(sampler, EpisodeSampler):
        return BATCH_COMPLETIONS
    shape = torch.Size(cast(FlowPolicy, policy).latent_shape)
    return max(1, min(BATCH_IMAGES, BATCH_NUMBERS // max(1, shape.numel())))
