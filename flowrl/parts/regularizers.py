"""What an update holds on to: penalties per decision [N, D], measured by the estimator against a named weight set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from flowrl.devices import put
from flowrl.parts.objectives import sample_mean
from flowrl.types import Batch, IncompatibleError, Likelihood, StepRows, ViewRows


def not_negative(weight: float) -> None:
    """Raise `ValueError` for a weight below 0."""
    if not weight >= 0:
        raise ValueError(f"a divergence of weight {weight} would be rewarded; use 0 for none, or more")


@dataclass(frozen=True)
class KL:
    """KL divergence to a weight set, per decision as the estimator measures it: of two Gaussian kernels (Flow-GRPO's
    ``beta`` term), or estimated from log-probabilities (GRPO's). A token advantage may weigh it decision by decision:
    ``kl_weight`` [N, D] in ``old.extra``, and the algorithm's ``penalty_weight`` sample by sample; the log shows it
    so."""

    weight: float = 0.04
    to: str = "reference"

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return f"kl/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        each, factor = likelihood.need(self.name), batch.old.extra.get("kl_weight")
        return batch.held(each if factor is None else each * factor)


@dataclass(frozen=True)
class EarlyKL(KL):
    """`KL` of the steps that begin at times t of ``above`` or more alone, where the picture's layout is decided: the
    later ones are free. DiverseGRPO's structure-aware regularization (arXiv:2512.21514), whose Wasserstein distance of
    two kernels of one variance is the shift of the mean (``estimator: {kl: shift}``)."""

    weight: float = 0.04
    to: str = "reference"
    above: float = 0.8

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        each = super().__call__(likelihood, batch)
        if not isinstance(batch.probe, StepRows):
            raise IncompatibleError("EarlyKL needs recorded steps: use it with the transitions estimator")
        return each * (put(batch.probe.t, each.device) >= self.above)


@dataclass(frozen=True)
class FDivergence:
    """An f-divergence of the policy's Gaussian kernel from a weight set's, per decision, from their KL k per latent
    element, as the estimator measures it. Of two kernels of one variance all follow from ``k = delta^2 / 2``, delta
    being the distance of their means in standard deviations (ROCM, arXiv:2503.06171):

    ``kl`` k; ``hellinger`` ``1 - exp(-k / 4)``, squared; ``chi2`` ``exp(2 k) - 1``; ``alpha``
    ``(1 - exp(-c (1 - c) k)) / (c (1 - c))`` with c = ``alpha``; ``js`` Jensen-Shannon, ``log 2`` less the mean of
    ``log(1 + exp(delta z - k))`` over a standard normal z, by quadrature. The bounded ones (hellinger, js, alpha)
    saturate where kernels are far apart, and then hold nothing.
    """

    weight: float = 0.1
    kind: Literal["kl", "hellinger", "chi2", "alpha", "js"] = "kl"
    alpha: float = 0.5
    to: str = "reference"

    def __post_init__(self) -> None:
        not_negative(self.weight)
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha} lies strictly between 0 and 1, where both KLs are")

    @property
    def name(self) -> str:
        return f"kl/{self.to}" if self.kind == "kl" else f"{self.kind}/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        kl = likelihood.need(f"kl/{self.to}")
        match self.kind:
            case "kl":
                return kl
            case "hellinger":
                return -torch.expm1(-kl / 4)
            case "chi2":
                return torch.expm1(2 * kl)
            case "alpha":
                bend = self.alpha * (1 - self.alpha)
                return -torch.expm1(-bend * kl) / bend
            case "js":
                nodes, weights = (torch.as_tensor(values).to(kl) for values in hermegauss(NODES))
                distance = (2 * kl).clamp(min=1e-24).sqrt()  # without a corner at 0
                inside = torch.nn.functional.softplus(distance[..., None] * nodes - kl[..., None])
                return math.log(2) - (inside * weights).sum(dim=-1) / math.sqrt(2 * math.pi)


NODES = 64
"""Of the quadrature over a normal variable."""


@dataclass(frozen=True)
class Prediction:
    """Mean squared difference of the predictions, ``mean (v - v_set)^2`` (AWM, DiffusionNFT). The algorithm's
    ``penalty_weight`` may weigh it sample by sample; the log shows it so."""

    weight: float = 1e-4
    to: str = "reference"

    @property
    def name(self) -> str:
        return f"prediction/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return batch.held(likelihood.need(self.name))


class ComparedWithOld:
    """A penalty that reads the policy that sampled, which is then measured."""


@dataclass(frozen=True)
class NormGuard:
    """``max(0, |v| / |v_set| - 1 - margin)^2``: acts only where the prediction has become longer than a weight set's.
    Reinforcement on denoising errors lengthens velocities by 5 to 15 %, which shows as burnt pictures; scaling them
    back when sampling does not help. A form to start from of NormGuard (arXiv:2606.27771), whose abstract says neither
    power, margin nor weight. Value and gradient are 0 up to the margin; the gradient is along v.

    The log has ``norm_growth/<set>``, the mean of ``|v| / |v_set| - 1``, wherever such a set is compared with at all.
    """

    weight: float = 1.0
    margin: float = 0.0
    to: str = "reference"

    def __post_init__(self) -> None:
        not_negative(self.weight)
        not_negative(self.margin)

    @property
    def name(self) -> str:
        return f"norm_guard/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return (likelihood.need(f"norm_growth/{self.to}") - self.margin).clamp(min=0) ** 2


@dataclass(frozen=True)
class KLToOld(ComparedWithOld):
    """Divergence from the policy that sampled, estimated by ``exp(-d) - 1 + d`` with ``d = log p - log p_old``
    (TraceRL, arXiv:2509.06949). Needs no weight set.

    summed: times the number of decisions that the network row answers, so that under a mean over a row's decisions it
    is their sum, as TraceRL's code adds it; the log shows it so.
    """

    weight: float = 0.01
    summed: bool = False
    to: str = ""

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return "kl/old"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        d = likelihood.logp - batch.old.logp
        each = (-d).exp() - 1 + d
        if not self.summed:
            return each
        counted = batch.probe.counted
        if counted is None:
            raise IncompatibleError("KLToOld.summed counts decisions: set estimator.per=cell or token")
        rows = counted.reshape(len(counted), -1, batch.probe.unit)
        count = rows.sum(dim=2, keepdim=True).expand_as(rows).reshape(counted.shape)
        return each * count.to(each)


@dataclass(frozen=True)
class BoundKL:
    """``(B - B_set)^2 / (2 L)`` of two likelihood bounds of a completion of L tokens, means over its views: the k2
    estimate of the sequences' divergence, per token. ESPO (arXiv:2512.03759).

    Squared after the mean over views; `KL` with the estimator's ``k2`` squares every view, whose noise then counts. The
    square is divided by L, not the bounds before it: that would be L times smaller. ``by_length=False`` does not divide
    (EBPO as in DARE).
    """

    weight: float = 1e-3
    to: str = "reference"
    by_length: bool = True
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return f"kl/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        if not isinstance(batch.probe, ViewRows) or batch.probe.per != "view":
            raise IncompatibleError("BoundKL compares the bounds of completions: set estimator.per=view on MaskedViews")
        counted = batch.weight > 0
        bound = sample_mean(likelihood.logp, counted)
        # the ratio's value is data; its gradient is the live bound's
        gap = sample_mean(likelihood.need(f"log_ratio/{self.to}"), counted) + bound - bound.detach()
        length = batch.probe.content.sum(dim=1).clamp(min=1).to(gap) if self.by_length else 1
        return (gap**2 / (2 * length))[:, None].expand_as(likelihood.logp)


@dataclass(frozen=True)
class RouterBalance:
    """The load-balancing loss of a mixture of experts, ``E sum_e f_e P_e`` (Switch Transformers, arXiv:2101.03961,
    section 2.2, equations 4-6; f_e: share of the router's choices that fall on expert e, P_e: its mean probability),
    of every row's own tokens, prompt and completion, and the mean over the layers; 1 where the load is even.

    Taken over a row (DeepSeek-V3's sequence-wise loss, arXiv:2412.19437, section 2.1.2) and not over the tokens of a
    batch, so that it does not depend on the micro-batch. Each decision of a row has it, with the decision's weight in
    the mean. Divided by the experts per token, and per layer, other than transformers' ``router_aux_loss_coef``: its
    loss is the number of experts per token where the load is even.
    """

    weight: float = 0.01
    to: str = ""

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return "router/balance"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return likelihood.need(self.name)


@dataclass(frozen=True)
class ValueLoss:
    """Half the squared error of the critic to the returns, clipped around its old answer. PPO (arXiv:1707.06347 and its
    released code): ``max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2``."""

    weight: float = 0.5
    clip: float = 0.2
    to: str = ""

    @property
    def name(self) -> str:
        return "value_loss"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        value, old, returns = likelihood.need("value"), batch.old.need("value"), batch.old.need("returns")
        near = torch.maximum(torch.minimum(value, old + self.clip), old - self.clip)
        return 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2)


@dataclass(frozen=True)
class Entropy:
    """Minus the entropy of every decision, as the estimator measures it with a gradient (of Gaussians, from their
    deviations): a bonus for exploring (PPO, arXiv:1707.06347 eq. 9)."""

    weight: float = 0.01
    to: str = ""

    @property
    def name(self) -> str:
        return "negative_entropy"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return -likelihood.need("entropy")


@dataclass(frozen=True)
class ActionShift:
    """``mean (a - a_set)^2`` of the chunks that a weight set's flow and the policy's make of z = 0, as
    `flowrl.estimators.noisy.NoisyChain` measures it: ReinFlow's term ``W2``, which it calls behaviour cloning
    (arXiv:2505.22094)."""

    weight: float = 0.1
    to: str = "reference"

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return f"action_shift/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return likelihood.need(self.name)


@dataclass(frozen=True)
class Brownian:
    """How far a flow's velocity is from the one that spreads its samples as heat does: ``brownian`` as
    `flowrl.estimators.perturbed.Perturbation` measures it (PolicyFlow, arXiv:2602.01156)."""

    weight: float = 0.01
    to: str = ""

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return "brownian"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return likelihood.need(self.name)
