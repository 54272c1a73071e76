"""Likelihood of completions under a masked-diffusion language model, from views of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.devices import put, wide
from flowrl.estimators.tokens import BALANCE, ENTROPY, KLKind, check_divergence, check_recorded, distances_to
from flowrl.estimators.views import RandomCount, Trajectory, ViewDraw
from flowrl.math.random import derive
from flowrl.types import (
    ALL_TOKENS,
    IncompatibleError,
    Likelihood,
    MaskedPolicy,
    Rollout,
    TextCondition,
    TokenScores,
    TokenTrace,
    ViewRows,
)

PROMPT_STREAM = "prompt"


@dataclass(frozen=True, kw_only=True)
class MaskedViews:
    """``log p(y_i | view)`` at the positions that ``views`` ask for.

    per: ``view`` is one decision per view, ``sum_i w_i log p_i`` (an estimate of the log-likelihood each); ``cell`` one
        per view and position, ``log p_i`` unweighted, view by view; ``token`` one per position, the mean over views of
        ``w log p``.
    corrupt: each prompt token is masked with this probability, anew for every view (diffu-GRPO's p = 0.15).
    tempered: score the distribution that tokens were drawn from, at the sampler's temperature and cut by its ``top_p``
        and ``top_k`` (see `Tokens`), instead of the model's own at temperature 1; needed for exact trajectory
        probabilities.
    kl: the estimate of the divergence to a weight set per decision, see `flowrl.math.masking.log_ratio_kl`.
    entropy: also measure the entropy at the positions asked for, in nats, without gradient; the log shows its mean.
    divergence: also measure the divergence of the whole distributions to every weight set or teacher compared with, as
        `flowrl.estimators.tokens.Tokens` does, with its ``top``; of a decision the sum or mean that its log-probability
        is.

    Views are drawn once and are the same for the new, the old and the reference policy (LLaDA 1.5's "antithetic"
    sampling, arXiv:2505.19223: otherwise the ratio of two estimates is mostly noise). Only the positions asked for pass
    through the vocabulary layer, and views in which nothing is asked are never run.
    """

    views: ViewDraw = RandomCount()
    per: Literal["view", "cell", "token"] = "view"
    corrupt: float = 0.0
    tempered: bool = False
    kl: KLKind = "k3"
    entropy: bool = True
    divergence: float | None = None
    top: int | None = None
    trust_rollout: bool = False

    def __post_init__(self) -> None:
        check_divergence(self.divergence, self.top)
        exact = isinstance(self.views, Trajectory) and self.views.merge == 1
        if self.trust_rollout and not (exact and self.per != "view" and self.tempered):
            raise ValueError(
                "trust_rollout=true takes what the sampler recorded of each token, and other views are measured: set "
                "per=cell or token, tempered=true and views=trajectory with merge=1, or trust_rollout=false"
            )
        if not 0 <= self.corrupt <= 1:
            raise ValueError(f"corrupt={self.corrupt} should be a probability, from 0 to 1")

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return self.trust_rollout

    def decisions(self, recorded: int) -> tuple[int, int]:
        check_recorded(recorded)
        draws = self.views.draws
        return {"view": draws, "cell": draws * recorded, "token": recorded}[self.per], draws

    def probe(self, rollout: Rollout, policy: MaskedPolicy, seeds: Tensor) -> ViewRows:
        trace = rollout.trace
        if not isinstance(trace, TokenTrace):
            raise IncompatibleError("views are made of completions: use a masked language model's sampler")
        views = self.views(trace, seeds)
        labels = trace.tokens[:, None].expand(views.hidden.shape) if views.labels is None else views.labels
        masked = torch.where(views.hidden, policy.mask_token, labels) if views.inputs is None else views.inputs
        drawn = [[derive(int(seed), PROMPT_STREAM, view) for view in range(self.views.draws)] for seed in seeds]
        return ViewRows(
            inputs=masked,
            labels=labels,
            targets=views.targets,
            weights=views.weights,
            content=trace.mask,
            prompt_seeds=torch.tensor(drawn, dtype=torch.int64),
            per=self.per,
            temperature=(trace.temperature or 1.0) if self.tempered else 1.0,
            truncation=trace.truncation if self.tempered else ALL_TOKENS,
            drawn_logp=trace.logp,
            given=trace.given,
            shared=self._nodes(trace),
        )

    def recorded_logp(self, rollout: Rollout, rows: ViewRows) -> Likelihood | None:
        if not self.trust_rollout:
            return None
        if rows.drawn_logp is None:
            raise IncompatibleError("estimator.trust_rollout needs algorithm.sampler.keep_scores=true")
        drawn = torch.where(rows.targets, rows.drawn_logp[:, None].double(), 0.0)
        return Likelihood(drawn.flatten(1) if self.per == "cell" else drawn.sum(dim=1))

    def _nodes(self, trace: TokenTrace) -> Tensor | None:
        """[N, m] the nodes that the views lead to, where they are those of a tree's levels."""
        if trace.node is None or self.per == "token":
            return None
        if trace.node.shape[1] != self.views.draws + 1:
            raise IncompatibleError(
                f"completions of a tree of {trace.node.shape[1] - 1} levels have a view for each: set "
                f"estimator.views=tree_levels with levels={trace.node.shape[1] - 1}"
            )
        return trace.node[:, 1:]

    def __call__(
        self, policy: MaskedPolicy, rows: ViewRows, condition: TextCondition, references: Sequence[str] = ()
    ) -> Likelihood:
        asked = rows.targets.flatten(0, 1).any(dim=1).nonzero()[:, 0]  # of [n * m]
        if not len(asked):  # a block of empty views: the first stands for them, and is asked for nothing
            asked = torch.zeros(1, dtype=torch.int64)
        frozen = {}
        for name in references:  # before the live pass: swapping weights under a live graph would corrupt it
            with policy.using(name) as reference:
                frozen[name] = self._cells(reference, rows, condition, asked, show=self.divergence is not None)
        beside = {name: found.shown for name, found in frozen.items() if found.shown}
        far = {"beside": beside, "beta": self.divergence or 0.0, "top": self.top}
        live = self._cells(policy, rows, condition, asked, self.entropy, **far)
        logp = self._reduced(rows, live.logp)
        extra = distances_to(logp, {name: self._reduced(rows, found.logp) for name, found in frozen.items()}, self.kl)
        extra |= {f"divergence/{name}": self._reduced(rows, cells) for name, cells in live.divergence.items()}
        if live.entropy is not None:
            extra[ENTROPY] = self._mean_asked(rows, live.entropy)
        if live.balance is not None:
            extra[BALANCE] = self._mean_views(rows, live.balance).expand(logp.shape)
        return Likelihood(logp, extra)

    def _cells(
        self,
        policy: MaskedPolicy,
        rows: ViewRows,
        condition: TextCondition,
        asked: Tensor,
        entropy: bool = False,
        **options: Any,
    ) -> TokenScores:
        """[n, m, L] log-probabilities, 0 where nothing is asked, entropies and divergences, and [n, m] balance of
        routers."""
        n, m, length = rows.inputs.shape
        wide = condition.take(torch.arange(n).repeat_interleave(m)[asked])
        if self.corrupt:
            wide = wide.corrupted(rows.prompt_seeds.flatten()[asked], self.corrupt, policy.mask_token)
        picked = (value.flatten(0, 1)[asked] for value in (rows.inputs, rows.targets, rows.labels))
        options |= {"temperature": rows.temperature, "truncation": rows.truncation}
        scores = policy.score(wide, *picked, entropy=entropy, **options)
        logp, balance, divergence = scores.logp, scores.balance, scores.divergence
        if torch.is_grad_enabled() and not logp.requires_grad and not bool(rows.targets.any()):
            nothing = torch.zeros((), device=logp.device, requires_grad=True)  # a loss of nothing is no error
            logp, balance = logp + nothing, None if balance is None else balance + nothing
            divergence = {name: value + nothing for name, value in divergence.items()}

        def spread(values: Tensor) -> Tensor:
            if len(asked) == n * m:
                return values.reshape(n, m, length)
            empty = values.new_zeros(n * m, length)
            return empty.index_put((put(asked, empty.device),), values).reshape(n, m, length)

        if balance is not None:
            balance = balance.new_zeros(n * m).index_copy(0, put(asked, balance.device), balance).view(n, m)
        apart = {name: spread(value) for name, value in divergence.items()}
        spread_entropy = None if scores.entropy is None else spread(scores.entropy)
        return TokenScores(spread(logp), spread_entropy, balance=balance, shown=scores.shown, divergence=apart)

    def _reduced(self, rows: ViewRows, cells: Tensor) -> Tensor:
        if self.per == "cell":
            return cells.flatten(1)
        cells = wide(cells)
        weighted = cells * put(rows.weights, cells.device)
        return weighted.sum(dim=2) if self.per == "view" else weighted.mean(dim=1)

    def _mean_views(self, rows: ViewRows, balance: Tensor) -> Tensor:
        """The [n, m] balance of views as that of decisions: of a decision's view, or the mean over the views asked."""
        if self.per == "view":
            return balance
        if self.per == "cell":
            return balance.repeat_interleave(rows.inputs.shape[2], dim=1)
        asked = put(rows.targets, balance.device).any(dim=2)
        return (balance.sum(dim=1) / asked.sum(dim=1).clamp(min=1))[:, None]

    def _mean_asked(self, rows: ViewRows, cells: Tensor) -> Tensor:
        """The mean of [n, m, L] cells over what a decision asks for; NaN where that is nothing."""
        asked = put(rows.targets, cells.device)
        if self.per == "cell":
            return torch.where(asked, cells, torch.nan).flatten(1)
        dim = 2 if self.per == "view" else 1
        return torch.where(asked, cells, 0.0).sum(dim=dim) / asked.sum(dim=dim)
