"""How evenly the routers of a mixture of experts spread the tokens: a loss for each row, and counts for the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.models.text.config import text_config
from flowrl.types import Ranks, exchange

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BIASED = ("correction_bias", "expert_bias")
"""Ends of the names of a bias that spreads the tokens by itself, as in DeepSeek-V3, whose routers are no softmax."""


def experts_per_token(model: PreTrainedModel, takes: frozenset[str]) -> int | None:
    """k of a mixture whose forward shows the scores of its top-k softmax routers (``output_router_logits`` of
    transformers), else ``None``."""
    chosen = getattr(text_config(model.config), "num_experts_per_tok", None)
    if "output_router_logits" not in takes or not isinstance(chosen, int):
        return None
    named = [*(name for name, _ in model.named_parameters()), *(name for name, _ in model.named_buffers())]
    return None if any(name.endswith(BIASED) for name in named) else chosen


def balance(logits: Tensor, inside: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """``(loss [n], load [E])`` of one layer's router, from its ``logits`` [n * W, E] and the places ``inside`` [n, W]
    that hold tokens.

    The loss of a row is ``E sum_e f_e P_e``: f_e is the share of its tokens' choices (``chosen`` experts each) that
    fall on expert e, without gradient, P_e the mean over its tokens of e's probability. It is 1 where both are even,
    and at most E. ``load`` counts the choices of all rows.
    """
    experts = logits.shape[-1]
    probability = logits.float().softmax(dim=-1)
    picked = torch.zeros_like(probability).scatter_(-1, probability.detach().topk(chosen).indices, 1.0)
    held = inside.to(logits.device)[..., None]
    shape = (*inside.shape, experts)
    counts = (picked.view(shape) * held).sum(dim=1)
    tokens = held.sum(dim=1)
    mean = (probability.view(shape) * held).sum(dim=1) / tokens
    return experts * (counts / (tokens * chosen) * mean).sum(dim=-1), counts.sum(dim=0)


@dataclass
class Routers:
    """The routers of a network, watched while it trains."""

    chosen: int
    """Experts per token."""
    loads: list[Tensor] = field(default_factory=list)
    """[E] for each layer: how often an expert was chosen in passes with gradients since `metrics` was last asked."""

    def __call__(self, output: Any, inside: Tensor) -> Tensor | None:
        """[n] float32: the loss of every row, the mean over the layers; ``None`` where the model showed no scores."""
        shown = [each for each in getattr(output, "router_logits", None) or () if isinstance(each, Tensor)]
        found = [balance(each, inside, self.chosen) for each in shown if each.shape[:-1].numel() == inside.numel()]
        if not found:
            return None
        if torch.is_grad_enabled():
            loads = [load for _, load in found]
            self.loads = [a + b for a, b in zip(self.loads, loads, strict=True)] if self.loads else loads
        return torch.stack([loss for loss, _ in found]).mean(dim=0)

    def metrics(self, ranks: Ranks) -> Mapping[str, float]:
        """Means over the layers of the share of choices that fall on the busiest expert (1 / E at least), of the
        entropy of the shares over its largest value log E (1 is even), and of the share of experts never chosen; they
        start anew. Nothing where nothing was trained."""
        said = exchange(ranks, [load.tolist() for load in self.loads])
        self.loads = []
        loads = [torch.tensor(each, dtype=torch.float64) for each in said if each]
        if not loads:
            return {}
        share = torch.stack(loads).sum(dim=0)
        share = share / share.sum(dim=1, keepdim=True)
        even = torch.special.entr(share).sum(dim=1) / torch.tensor(float(share.shape[1])).log()
        return {
            "router/busiest_share": float(share.amax(dim=1).mean()),
            "router/load_entropy": float(even.mean()),
            "router/unused_share": float((share == 0).double().mean()),
        }
