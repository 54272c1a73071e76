"""How much each decision matters: factors [N, D] on the loss, known before any forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.types import IncompatibleError, StepRows, Table, ViewRows


@dataclass(frozen=True)
class Uniform:
    """Factor 1."""

    def __call__(self, table: Table) -> Tensor:
        return torch.ones(table.mask.shape, dtype=torch.float64)


@dataclass(frozen=True)
class PerToken:
    """1 over the number of tokens: of decisions that estimate the bound of a whole completion, the bound per token.

    over: ``sample`` each completion by its own tokens, so that all count the same (LLaDA's SFT, arXiv:2502.09992);
        ``all`` by the mean number of the iteration, so that all tokens do (d1's SFT).
    """

    over: Literal["sample", "all"] = "sample"

    def __call__(self, table: Table) -> Tensor:
        taking_part = table.mask.any(dim=1)
        length = table.rows.lengths.double()
        if self.over == "all":
            length = length[taking_part].mean().expand_as(length) if bool(taking_part.any()) else length
        return (1 / length)[:, None].expand(table.mask.shape)


@dataclass(frozen=True)
class InverseStep:
    """``1 / |t' - t|``: balances the gradient over denoising steps. GRPO-Guard (arXiv:2510.22319).

    ``normalise`` divides by the sample's mean factor, so that the learning rate keeps its meaning on other grids (the
    paper's code does not).
    """

    normalise: bool = False

    def __call__(self, table: Table) -> Tensor:
        rows = table.rows
        if not isinstance(rows, StepRows):
            raise IncompatibleError(
                "loss_weight InverseStep needs recorded steps: use it with the transitions estimator"
            )
        factor = 1 / (rows.t - rows.t_next).double()
        return factor / factor.mean(dim=1, keepdim=True) if self.normalise else factor


@dataclass(frozen=True)
class EqualViews:
    """Every view of a completion counts the same, however many positions it asks for: TraceRL's mean over training rows
    (arXiv:2509.06949). Mean factor 1 over the cells that are asked for."""

    def __call__(self, table: Table) -> Tensor:
        rows = table.rows
        if not isinstance(rows, ViewRows) or rows.per != "cell":
            raise IncompatibleError("loss_weight EqualViews needs cells: set estimator.per=cell on MaskedViews")
        asked = rows.targets.sum(dim=2, keepdim=True).double()
        share = 1 / asked.clamp(min=1)
        scale = asked.sum(dim=1, keepdim=True) / (asked > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return (share * scale).expand(rows.targets.shape).reshape(rows.shape)


@dataclass(frozen=True)
class ViewWeight:
    """A cell counts by the weight of its view over the number of views, so that a sum over a sample's cells
    (`SampleSum`) is the mean over views of what each of them estimates, with a ratio per token. AGRPO's importance
    weights of drawn steps (arXiv:2510.04019)."""

    def __call__(self, table: Table) -> Tensor:
        rows = table.rows
        if not isinstance(rows, ViewRows) or rows.per != "cell":
            raise IncompatibleError("loss_weight ViewWeight needs cells: set estimator.per=cell on MaskedViews")
        return (rows.weights / rows.weights.shape[1]).reshape(rows.shape)


@dataclass(frozen=True)
class ByLength:
    """``(length / mean length) ^ power`` of the completion: 1 lets every token count the same (SPG), -1 divides a
    sequence's loss by its length (GDPO)."""

    power: float = 1.0

    def __call__(self, table: Table) -> Tensor:
        rows = table.rows
        if not isinstance(rows, ViewRows):
            raise IncompatibleError("loss_weight ByLength needs completions of a masked language model")
        length = rows.content.sum(dim=1).double()
        return ((length / length.mean()) ** self.power)[:, None].expand(rows.shape)


@dataclass(frozen=True)
class OncePerNode:
    """A decision that samples share counts once instead of once for each of them: ``1 / copies``, mean 1 over what the
    network is asked. Then every edge of a tree weighs the same, as in the released losses of BranchGRPO and d-TreeRPO,
    and deeper levels, which have more of them, more; without it, every level weighs the same, which alone is the
    gradient of the expected reward."""

    def __call__(self, table: Table) -> Tensor:
        node = table.rows.node
        if node is None:
            raise IncompatibleError("loss_weight OncePerNode needs samples that share steps: use a TreeSampler")
        key = torch.stack([table.group[:, None].expand_as(node), table.rows.events, node], dim=-1).reshape(-1, 3)
        _, which, copies = key.unique(dim=0, return_inverse=True, return_counts=True)
        factor = 1 / copies[which].double().reshape(node.shape)
        unit = table.rows.unit
        asked = table.mask.reshape(len(node), -1, unit).any(dim=2)
        return factor / factor[:, ::unit][asked].mean() if bool(asked.any()) else factor


@dataclass(frozen=True)
class WithoutEvents:
    """Leaves some events of a sample out, steps or levels of a tree by number from 0; the others weigh as they would
    alone. BranchGRPO's pruning by depth (arXiv:2509.06040), whose depth d is event d - 1."""

    events: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(event < 0 for event in self.events):
            raise ValueError(f"events={list(self.events)} are numbers from 0 on")

    def __call__(self, table: Table) -> Tensor:
        kept = (~torch.isin(table.rows.events, torch.tensor(self.events, dtype=torch.int64))).double()
        if not bool((kept[table.mask] > 0).any()) and bool(table.mask.any()):
            raise IncompatibleError(f"loss_weight.events={list(self.events)} leaves no decision to train; name fewer")
        return kept / kept[table.mask].mean() if bool(table.mask.any()) else kept


@dataclass(frozen=True)
class StepNoise:
    """By the kernel's noise: what a change of the velocity gains at step k is proportional to ``|B| / s`` of its kernel
    ``x' = A x + B v + s z``, whose noise of s it is explored by.

    by: ``noise`` is ``scale * s``, TempFlow-GRPO's (arXiv:2508.04324; 2.25 there). ``equal`` is ``s / |B|``, so that
        every step gains the same: Flash-GRPO's (arXiv:2605.15980), on any grid and kernel.
    over: what the factors have the mean 1 over: all ``decisions`` of the iteration, or nothing (``none``).
    """

    by: Literal["noise", "equal"] = "equal"
    over: Literal["decisions", "none"] = "decisions"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale} is a factor on the loss: give one above 0")

    def __call__(self, table: Table) -> Tensor:
        rows = table.rows
        dynamics = getattr(rows, "dynamics", None)
        if not isinstance(rows, StepRows) or dynamics is None:
            raise IncompatibleError("loss_weight StepNoise needs recorded steps: use it with the transitions estimator")
        _, b, s = dynamics.coefficients(rows.t, rows.t_next)
        factor = self.scale * (s if self.by == "noise" else s / b.abs())
        return factor / factor.mean() if self.over == "decisions" else factor


@dataclass(frozen=True)
class LaterSteps:
    """``(k + start) / K`` at the k-th of K events, counted from 0: what lies nearer to the sample that was scored
    counts more. TDM-R1 (arXiv:2603.07700), in whose port the first has 2 / K."""

    start: int = 2

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"start={self.start} would let the first events count less than nothing; give 0 or more")

    def __call__(self, table: Table) -> Tensor:
        place = table.rows.events.clamp(min=0)
        return (place + self.start).double() / (int(place.max()) + 1)
