"""Views of completions that are the leaves of a tree."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowrl.estimators.views import Views
from flowrl.types import IncompatibleError, TokenTrace


@dataclass(frozen=True, kw_only=True)
class TreeLevels:
    """One view for every level of a tree: the state of the branch before it, of which the tokens that the level fixed
    are asked for, up to the end token; what is fixed later is hidden. It is the probability of the level's tokens if
    all of them were drawn in one step, as d-TreeRPO (arXiv:2512.09675) scores an edge; in several, a stand-in for it.
    """

    levels: int = 2

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels={self.levels} should be at least 1, as many as the sampler's")

    @property
    def draws(self) -> int:
        return self.levels

    def __call__(self, trace: TokenTrace, seeds: torch.Tensor) -> Views:
        if trace.event is None or trace.node is None:
            raise IncompatibleError("views of levels are those of a tree: give the algorithm a MaskedTreeSampler")
        index = torch.arange(self.levels)[None, :, None]
        event = trace.event[:, None]
        targets = (event == index) & trace.mask[:, None]
        return Views((event < 0) | (event >= index), targets, targets.double())
