"""Likelihood of autoregressive completions: one decision per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.math.masking import log_ratio_kl
from flowrl.types import (
    ALL_TOKENS,
    CausalPolicy,
    IncompatibleError,
    Likelihood,
    Rollout,
    Rows,
    TextCondition,
    TokenScores,
    TokenTrace,
    Truncation,
)

KLKind = Literal["k1", "k2", "k3"]
ENTROPY, COLLISION, BALANCE = "entropy", "collision", "router/balance"


@dataclass(frozen=True)
class TokenRows(Rows):
    """Completions to be scored."""

    tokens: Tensor  # [N, T]
    mask: Tensor  # [N, T] bool
    recorded_logp: Tensor | None  # [N, T] as the sampler computed it
    temperature: float
    truncation: Truncation = ALL_TOKENS
    event: Tensor | None = None  # [N, T] int64, see `TokenTrace.event`

    @property
    def unit(self) -> int:
        return self.tokens.shape[1]

    def row_tokens(self, condition: Any) -> Tensor:
        """Up to the last token that counts: an autoregressive model need not read further."""
        length = self.tokens.shape[1]
        behind = self.mask.flip(1).int().argmax(dim=1)
        return condition.row_lengths + torch.where(self.mask.any(dim=1), length - behind, 0)

    @property
    def counted(self) -> Tensor:
        return self.mask

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(dim=1).clamp(min=1)

    @property
    def sampler_logp(self) -> Tensor | None:
        return self.recorded_logp

    @property
    def events(self) -> Tensor:
        return super().events if self.event is None else self.event


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """``log p(token | prompt, earlier tokens)`` at the sampler's temperature.

    kl: the estimate of the divergence to a weight set at each token, see `flowrl.math.masking.log_ratio_kl`; with
        ``k3`` as GRPO's loss term its gradient is that of the reverse KL only to first order (arXiv:2505.17508).
    entropy: also measure the entropy of every distribution, in nats, without gradient; the log shows its mean.
    collision: also measure ``-log sum_v p_v^2``, minus the log of the chance that two draws are the same token (WPO).
    truncated: score under the distribution that was drawn from, cut by the sampler's ``top_p`` and ``top_k``, so that
        what is trained is the policy that sampled. The set of tokens kept is that of the weights in use, and always
        holds the token drawn; no gradient flows through the choice of the set. ``False``: the full distribution, as
        TRL and verl have it, whose ratio to the sampler's probabilities is not 1.
    tempered: score at the sampler's temperature; ``False``: at temperature 1, as GKD's code does, whose samples are
        cooler.
    divergence: also measure, to every weight set or teacher compared with, the divergence of the whole distributions
        over the vocabulary at each token, with gradient, as ``divergence/<set>``: GKD's of this ``beta``, 0 the forward
        ``KL(set | policy)``, 1 the reverse ``KL(policy | set)`` (`flowrl.math.divergences`). Of the full distributions
        at the same temperature, whatever ``top_p`` and ``top_k`` cut. ``None``: not.
    top: of so many outcomes alone: the other side's ``top`` most likely tokens, and any other token (TRL's
        distillation with ``loss_add_tail``, at beta 0; verl's ``forward_kl_topk`` has no such outcome). ``None``: of
        the whole vocabulary.
    trust_rollout: take the sampler's own log-probabilities as the old policy's instead of computing them again. They
        agree to rounding in float32; an inference engine, or a low precision, differs by more.
    """

    kl: KLKind = "k3"
    entropy: bool = True
    collision: bool = False
    truncated: bool = True
    trust_rollout: bool = False
    tempered: bool = True
    divergence: float | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        check_divergence(self.divergence, self.top)

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return self.trust_rollout

    def decisions(self, recorded: int) -> tuple[int, int]:
        return check_recorded(recorded), 1

    def probe(self, rollout: Rollout, policy: CausalPolicy, seeds: Tensor) -> TokenRows:
        trace = rollout.trace
        if not isinstance(trace, TokenTrace):
            raise IncompatibleError("tokens are scored on completions: use a language model's sampler")
        if self.trust_rollout and not (self.truncated or trace.truncation.off):
            raise IncompatibleError(
                "estimator.trust_rollout takes the sampler's probabilities, which top_p or top_k cut, and "
                "estimator.truncated=false scores others; change one of them"
            )
        truncation = trace.truncation if self.truncated else ALL_TOKENS
        heat = (trace.temperature or 1.0) if self.tempered else 1.0
        if self.trust_rollout and heat != (trace.temperature or 1.0):
            raise IncompatibleError(
                "estimator.trust_rollout takes the sampler's probabilities, at its temperature, and "
                "estimator.tempered=false scores others; change one of them"
            )
        return TokenRows(trace.tokens, trace.mask, trace.logp, heat, truncation, trace.event)

    def recorded_logp(self, rollout: Rollout, rows: TokenRows) -> Likelihood | None:
        if not self.trust_rollout:
            return None
        if rows.recorded_logp is None:
            raise IncompatibleError("trust_rollout needs a sampler that records log-probabilities")
        if bool(rows.recorded_logp[rows.mask].isnan().any()):
            raise IncompatibleError(
                "estimator.trust_rollout takes the sampler's probabilities, and some completions are another policy's "
                "or a data set's, whose probabilities are not known; set it to false"
            )
        return Likelihood(rows.recorded_logp.double())

    def __call__(
        self, policy: CausalPolicy, rows: TokenRows, condition: TextCondition, references: Sequence[str] = ()
    ) -> Likelihood:
        def score(model: CausalPolicy, entropy: bool = False, **options: Any) -> TokenScores:
            return model.score(
                condition,
                rows.tokens,
                rows.mask,
                rows.tokens,
                temperature=rows.temperature,
                entropy=entropy,
                truncation=rows.truncation,
                **options,
            )

        whole = self.divergence is not None
        frozen = {}
        for name in references:  # before the live pass: swapping weights under a live graph would corrupt it
            with policy.using(name) as reference:
                frozen[name] = score(reference, show=whole)
        beside = {name: scores.shown for name, scores in frozen.items()} if whole else {}
        far = {"beside": beside, "beta": self.divergence or 0.0, "top": self.top}
        live = score(policy, self.entropy, collision=self.collision, **far)
        extra = distances_to(live.logp, {name: scores.logp for name, scores in frozen.items()}, self.kl)
        extra |= {f"divergence/{name}": value for name, value in live.divergence.items()}
        if live.entropy is not None:
            extra[ENTROPY] = live.entropy
        if live.collision is not None:
            extra[COLLISION] = live.collision
        if live.value is not None:
            extra["value"] = live.value
        if live.balance is not None:  # of the row: every decision of it has the same
            extra[BALANCE] = live.balance[:, None].expand_as(live.logp)
        return Likelihood(live.logp, extra)


def check_divergence(beta: float | None, top: int | None) -> None:
    """Raise `ValueError` for a divergence that is none."""
    if top is not None and (beta is None or top < 1):
        raise ValueError(
            f"top={top} counts the tokens of a divergence: give 1 or more, and divergence; or leave it out"
        )
    if beta is not None and not 0 <= beta <= 1:
        raise ValueError(f"divergence={beta} mixes two distributions: give 0 (forward KL) to 1 (reverse KL), or null")


def check_recorded(recorded: int) -> int:
    """The decisions of a completion; `IncompatibleError` where there are none."""
    if not recorded:
        raise IncompatibleError("greedy completions of a prompt are all the same; train with temperature above 0")
    return recorded


def distances_to(logp: Tensor, frozen: dict[str, Tensor], kl: KLKind) -> dict[str, Tensor]:
    """``kl/<set>`` and ``log_ratio/<set>`` (without gradient) of every frozen weight set."""
    extra = {}
    for name, other in frozen.items():
        extra[f"kl/{name}"] = log_ratio_kl(logp, other, kl)
        extra[f"log_ratio/{name}"] = (logp - other).detach()
    return extra
