"""Sampling of masked-diffusion language models around parts of a reference solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from flowrl.math.random import uniform
from flowrl.samplers.masked import Canvas, MaskedSampler
from flowrl.samplers.recorded import Recorded
from flowrl.types import DATA, Draw, MaskedPolicy, Prompt, Rollout, Sampler, TextCondition

CHUNK_STREAM, RATIO_STREAM, ORDER_STREAM = 3_000_001, 3_000_002, 3_000_003


@dataclass(frozen=True, kw_only=True)
class HintedSampler(MaskedSampler):
    """A `MaskedSampler` whose first ``hints`` samples of every group find chunks of the prompt's ``column``, a
    solution, on their canvas already: between ``least`` and ``most`` tokens each, at their own places, so many of them
    that they are a share of the solution drawn from ``low`` to ``high``. The model fills the rest. IGPO
    (arXiv:2509.10396).

    ``data.group`` counts both kinds. Hinted samples are scored like others, are `flowrl.types.DATA`, and move no
    baseline unless the advantage takes them in (`RescuedGroups`); `TokenTrace.given` says which of their tokens were
    there. The end of the solution is never given. Without hints in evaluation.
    """

    column: str = "solution"
    hints: int = 4
    low: float = 0.2
    high: float = 0.6
    least: int = 4
    most: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hints < 1:
            raise ValueError(f"hints={self.hints} samples of a group should be at least 1; without, use MaskedSampler")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low={self.low} and high={self.high} are shares of a solution: 0 <= low <= high <= 1")
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least={self.least} and most={self.most} are tokens of a chunk: 1 <= least <= most")
        if self.keep_steps or self.keep_scores:
            raise ValueError("a HintedSampler keeps no steps or scores of what was not drawn: leave those options off")

    @property
    def data(self) -> Recorded:
        """What reads the solutions."""
        own = {f.name: getattr(self, f.name) for f in fields(MaskedSampler)}
        return Recorded(sampler=MaskedSampler(**own), columns=(self.column,))

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Sampler:
        """The policy alone."""
        return self.data.sampler.heldout(steps, guidance, temperature)

    def prepared(self, prompts: Sequence[Prompt], where: str) -> list[Prompt]:
        """The prompts of a data set, checked as `Recorded` does."""
        return self.data.prepared(prompts, where)

    def texts(self, prompt: Prompt) -> list[str]:
        """Completions that have to fit into the length: none, a solution is cut there."""
        return []

    def __call__(self, policy: MaskedPolicy, condition: TextCondition, draw: Draw) -> Rollout:
        made = super().__call__(policy, condition, draw)
        hinted = draw.place < self.hints
        given = self._given(policy, draw)[1] & made.trace.mask if made.trace is not None else None
        trace = None if made.trace is None else replace(made.trace, given=given)
        return replace(made, trace=trace, source=torch.where(hinted, DATA, made.source))

    def begin(self, canvas: Canvas, policy: MaskedPolicy) -> None:
        """Put the chunks there, as fixed before the first step."""
        tokens, given = self._given(policy, canvas.draw)
        canvas.tokens = torch.where(given, tokens, canvas.tokens)
        canvas.order = torch.where(given, 0, canvas.order)

    def _given(self, policy: MaskedPolicy, draw: Draw) -> tuple[Tensor, Tensor]:
        """``(the solutions [N, L], which of their tokens are given [N, L])``."""
        rows = (draw.place < self.hints).nonzero()[:, 0].tolist()
        tokens = torch.zeros(len(draw), self.length, dtype=torch.int64)
        given = torch.zeros(len(draw), self.length, dtype=torch.bool)
        if not rows:
            return tokens, given
        texts = [self.data.texts(draw.prompts[row])[0] for row in rows]
        tokens[rows], inside = policy.encode(texts, self.length)
        inside &= ~torch.isin(tokens[rows], torch.tensor(policy.end_tokens))
        given[rows] = inside & self._chunks(draw.seeds[rows], inside.sum(dim=1))
        return tokens, given

    def _chunks(self, seeds: Tensor, length: Tensor) -> Tensor:
        """[n, L] bool: whole chunks in random order, while they are less than a random share of the ``length`` [n]."""
        sizes = self.least + (uniform(seeds, (self.length,), stream=CHUNK_STREAM) * (self.most - self.least + 1)).long()
        ends = sizes.cumsum(dim=1)  # of each chunk
        place = torch.arange(self.length).expand(len(seeds), -1).contiguous()
        chunk = torch.searchsorted(ends, place, right=True)  # which one a position is in
        order = uniform(seeds, (self.length,), stream=ORDER_STREAM).argsort(dim=1).argsort(dim=1)
        counted = torch.zeros(len(seeds), self.length, dtype=torch.int64)
        counted.scatter_add_(1, chunk, (place < length[:, None]).long())  # tokens of a chunk
        before = torch.where(order[:, None] < order[..., None], counted[:, None], 0).sum(dim=2)
        share = self.low + (self.high - self.low) * uniform(seeds, (), stream=RATIO_STREAM)
        taken = before + counted <= (share * length).floor()[:, None]
        return taken.gather(1, chunk) & (place < length[:, None])
