"""Views whose mean is a likelihood bound, by numbers of hidden positions: subsets and their complements, and all
blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.estimators.views import COUNT_STREAM, MASK_STREAM, Views, asked_views, check_draws, random_positions
from flowrl.math.masking import random_subset
from flowrl.math.random import uniform
from flowrl.types import IncompatibleError, TokenTrace


@dataclass(frozen=True, kw_only=True)
class CountPairs:
    """Pairs that hide k random positions and all others, k uniform on 0..L; weights ``(L + 1) / k`` and
    ``(L + 1) / (L - k)``: the evidence lower bound without bias, and every token is asked for in every pair. ESPO
    (arXiv:2512.03759).

    The k of a completion's pairs are stratified, as the released code stratifies those of a batch's completions. With k
    = 0 or L one view of the pair is empty: two of L + 1 pairs know one forward of two.
    """

    pairs: int = 2

    def __post_init__(self) -> None:
        check_draws(pairs=self.pairs)

    @property
    def draws(self) -> int:
        return 2 * self.pairs

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        numbers = content.sum(dim=1, keepdim=True) + 1  # of values that k may have
        place = (uniform(seeds, (1,), stream=COUNT_STREAM) + torch.arange(self.pairs) / self.pairs) % 1.0
        count = (place * numbers).long().clamp(max=numbers - 1)
        part = random_positions(content, count, seeds)
        rest = content[:, None] & ~part
        weight = [numbers / k.clamp(min=1).double() for k in (count, numbers - 1 - count)]
        return asked_views(content, torch.cat([part, rest], dim=1), torch.cat(weight, dim=1))


@dataclass(frozen=True, kw_only=True)
class EveryBlock:
    """A view for every block of ``block`` positions, ``repeats`` times: earlier blocks shown, later ones hidden, k of
    its n positions hidden and asked for, k uniform on 1..n; weight n / k, times the blocks: the mean over views is the
    sum over blocks of each one's any-order bound, that of a sampler which decodes blocks from left to right, without
    bias. The composite of EBPO (LLaDA 2.1, arXiv:2602.08676; as re-implemented in DARE).

    A block-diffusion model answers all blocks in one forward of twice the length, noisy beside clean; a model with full
    attention needs a forward for each, so this costs as many rows as there are blocks. Numbers of hidden positions are
    stratified over blocks and repeats. A completion that ends early has empty views for the blocks behind.

    length: the most positions of a completion.
    """

    length: int
    block: int = 32
    repeats: int = 1

    def __post_init__(self) -> None:
        check_draws(length=self.length, block=self.block, repeats=self.repeats)

    @property
    def blocks(self) -> int:
        """Of the longest completion."""
        return -(-self.length // self.block)

    @property
    def draws(self) -> int:
        return self.blocks * self.repeats

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        if content.shape[1] > self.length:
            raise IncompatibleError(
                f"completions have {content.shape[1]} positions; raise estimator.views.length={self.length}"
            )
        place = torch.arange(content.shape[1]) // self.block
        block = torch.arange(self.draws)[:, None] % self.blocks  # [m, 1]
        inside = content[:, None] & (place == block)
        size = inside.sum(dim=-1)
        share = (uniform(seeds, (1,), stream=COUNT_STREAM) + torch.arange(self.draws) / self.draws) % 1.0
        count = (share * size).long() + 1
        targets = random_subset(uniform(seeds, tuple(inside.shape[1:]), stream=MASK_STREAM), inside, count)
        hidden = targets | (place > block) | ~content[:, None]
        weight = self.blocks * size / count.double()
        return Views(hidden, targets, targets * weight[..., None])
