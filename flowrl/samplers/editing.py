"""Sampling of masked-diffusion language models that go over a draft again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.devices import float64_device, put, to_host
from flowrl.math.masking import draw_tokens
from flowrl.math.random import uniform
from flowrl.samplers.masked import TOKEN_STREAM, MaskedSampler, final_of
from flowrl.types import Draw, MaskedPolicy, Rollout, TextCondition, TokenTrace


@dataclass(frozen=True, kw_only=True)
class EditingSampler(MaskedSampler):
    """A `MaskedSampler`, and then ``edits`` steps in which every token of the draft that the model, reading the whole
    of it, finds less likely than ``below`` is drawn anew, all at once; one that is drawn as it was counts as drawn.
    AutoEdit of ReflectDrive-2, as a translation of its report describes it.

    What is edited depends on the state alone, so that the log-probabilities of all draws, of draft and edits, have the
    exact policy gradient (`RecordedSteps`), where the order of the draft has. A rule that looks at the new token (to
    keep it if it is likely) does not. A model that was never trained on unmasked inputs has nothing to say about them.
    """

    edits: int = 1
    below: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edits < 1:
            raise ValueError(f"edits={self.edits} should be at least 1; without edits, use MaskedSampler")
        if not 0 < self.below <= 1:
            raise ValueError(f"below={self.below} is a probability: give one above 0, at most 1 (every token)")
        if self.guidance or self.keep_steps or self.keep_scores:
            raise ValueError("an EditingSampler has no guidance, and keeps steps of its own: leave those options off")

    @property
    def kept_steps(self) -> int:
        return self.most_steps + self.edits

    @property
    def forwards(self) -> int:
        return self.most_steps + self.edits

    @torch.no_grad()
    def __call__(self, policy: MaskedPolicy, condition: TextCondition, draw: Draw) -> Rollout:
        made = super().__call__(policy, condition, draw)
        trace = made.trace
        assert isinstance(trace, TokenTrace) and trace.order is not None  # of the draft
        order, fixed = trace.order.clone(), trace.order >= 0
        tokens = torch.where(fixed, trace.tokens, policy.mask_token)
        step = torch.arange(self.most_steps)[:, None]
        shown = fixed[:, None] & (order[:, None] < step)
        canvases = [torch.where(shown, tokens[:, None], policy.mask_token)]
        drawn = [torch.where(order[:, None] == step, tokens[:, None], -1)]
        read, rows = policy.reader(condition), torch.arange(len(draw))
        for edit in range(self.most_steps, self.kept_steps):
            logits = read(rows, tokens, fixed, 0).float()
            found, chance = to_host(self._edited(logits, tokens[fixed], draw.seeds, fixed, edit))
            canvases.append(tokens[:, None])
            anew = torch.full_like(tokens, -1)
            anew[fixed] = torch.where(chance < self.below, found, -1)
            drawn.append(anew[:, None])
            tokens, order = torch.where(anew >= 0, anew, tokens), torch.where(anew >= 0, edit, order)
        kept = {"canvases": torch.cat(canvases, dim=1).int(), "drawn": torch.cat(drawn, dim=1).int()}
        trace = self.traced(policy, tokens, order, **kept)
        forwards = made.forwards + self.edits * len(draw)
        return replace(made, final=final_of(trace, policy), trace=trace, forwards=forwards)

    def _edited(
        self, logits: Tensor, present: Tensor, seeds: Tensor, fixed: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """[K] new draws at the fixed positions, and how likely the present tokens are."""
        numbers = put(uniform(seeds, (self.length,), stream=TOKEN_STREAM + step)[fixed], float64_device(logits.device))
        found, _ = draw_tokens(logits, numbers, self.temperature, self.truncation)
        chance = logits.softmax(dim=-1).gather(1, put(present, logits.device)[:, None])[:, 0]
        return found, chance
