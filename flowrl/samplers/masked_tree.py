"""Sampling of masked-diffusion language models as a tree: completions of a group share the blocks before they part."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from flowrl.math.masking import is_end
from flowrl.samplers.masked import Canvas, MaskedSampler, final_of
from flowrl.samplers.sharing import distinct, tied_seeds
from flowrl.types import Draw, MaskedPolicy, Rollout, TextCondition


@dataclass(frozen=True, kw_only=True)
class MaskedTreeSampler(MaskedSampler):
    """A `MaskedSampler` whose ``branches ** levels`` completions are the leaves of a tree: the blocks fall into
    ``levels`` equal parts, and before each of them every branch splits into ``branches``. d-TreeRPO
    (arXiv:2512.09675), whose branches split every N / s steps.

    What a branch draws follows from its group and number, of a leaf from its own seed. With 4 branches of 2 levels, 20
    halves of a completion are filled for 16 completions, instead of 32.
    """

    levels: int = 2
    branches: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.levels, self.branches - 1) < 1:
            raise ValueError(f"levels={self.levels} and branches={self.branches}: give at least 1 level of 2")
        if self.keep_steps:
            raise ValueError("keep_steps=true is not for samplers whose completions share steps; remove it")
        if self.blocks < self.levels:
            raise ValueError(
                f"a completion has {self.blocks} blocks, and each of levels={self.levels} takes one or more; lower "
                "sampler.block or sampler.levels"
            )

    @property
    def tree(self) -> int:
        """Samples that share something: a group should hold whole trees."""
        return self.branches**self.levels

    def level(self, block: int) -> int:
        """Of a block."""
        return block * self.levels // self.blocks

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> MaskedSampler:
        """Completions by themselves."""
        own = {f.name: getattr(self, f.name) for f in fields(MaskedSampler)}
        return MaskedSampler(**own).heldout(steps, guidance, temperature)

    @torch.no_grad()
    def __call__(self, policy: MaskedPolicy, condition: TextCondition, draw: Draw) -> Rollout:
        canvas = Canvas(self, policy, condition, draw)
        nodes = [draw.place // self.tree * self.tree]
        for level in range(self.levels):
            below = self.branches ** (self.levels - 1 - level)  # leaves of a branch of this level
            nodes.append(draw.place // below * below)
            self._grow(canvas, policy, draw, level, nodes[-1], alone=below == 1)
        kept = {} if canvas.scores is None else {"logp": canvas.scores[0], "entropy": canvas.scores[1]}
        trace = self.traced(policy, canvas.tokens, canvas.order, **kept)
        events = torch.tensor([self.level(place // self.width) for place in range(self.length)])
        event = torch.where(canvas.order >= 0, events, -1)
        trace = replace(trace, event=event, node=torch.stack(nodes, dim=1))
        return Rollout.of(draw, condition, final_of(trace, policy), trace, forwards=canvas.forwards)

    def _grow(self, canvas: Canvas, policy: MaskedPolicy, draw: Draw, level: int, node: Tensor, alone: bool) -> None:
        """Fill a level's blocks once for every branch, and hand them to all of its leaves."""
        one, which = distinct(torch.stack([draw.group, node], dim=1))
        canvas.draw = draw if alone else replace(draw, seeds=tied_seeds(draw, node))
        canvas.renew(policy)  # what it remembers of finished blocks is of other rows
        going = one.sort().values
        for block in (block for block in range(self.blocks) if self.level(block) == level):
            done = is_end(canvas.tokens[going], policy.end_tokens) & (canvas.order[going] >= 0)
            going = going[~done.any(dim=1)]
            if not len(going):
                break
            canvas.fill(block, going)
        canvas.tokens, canvas.order = canvas.tokens[one][which], canvas.order[one][which]
        if canvas.scores is not None:
            canvas.scores = canvas.scores[:, one][:, which]
