"""Log-likelihoods of whole samples [N] from those of their decisions [N, D], and pairs of samples of one group."""

from __future__ import annotations

from torch import Tensor

from flowrl.parts.objectives import sample_mean
from flowrl.types import Batch, Likelihood


def of_samples(values: Tensor, batch: Batch) -> Tensor:
    """[N] log-probabilities, or differences of them, of samples from those of their decisions [N, D]: the sum over
    parts such as tokens and steps, the mean over draws or views that each estimate the whole (`Rows.of_whole`)."""
    counted = batch.weight > 0
    if batch.probe is not None and batch.probe.of_whole:
        return sample_mean(values, counted)
    return values.where(counted, 0.0).sum(dim=1)


def gains(likelihood: Likelihood, batch: Batch, share: float, reference: str = "reference") -> Tensor:
    """[N] ``log p - share log p_reference - (1 - share) log p_old`` of samples, with the gradient of ``log p``. Old is
    the policy that sampled, reference a weight set."""
    gain = likelihood.logp - batch.old.logp
    if share:
        # its value is data that the estimator measured without a graph; the gradient is the live likelihood's
        to_reference = likelihood.need(f"log_ratio/{reference}").detach() + likelihood.logp - likelihood.logp.detach()
        gain = share * to_reference + (1 - share) * gain if share < 1 else to_reference
    return of_samples(gain, batch)


def rivals(group: Tensor) -> tuple[Tensor, Tensor]:
    """``(i, j)``, [K] each: all ordered pairs of two samples of one group [N]."""
    pairs = (group[:, None] == group).fill_diagonal_(False).nonzero()
    return pairs[:, 0], pairs[:, 1]


def mean_over_rivals(values: Tensor, first: Tensor, count: int) -> Tensor:
    """[count] the mean of the values [K] of pairs over the second of each pair; 0 for a sample without a rival."""
    totals = values.new_zeros(count).index_add(0, first, values)
    return totals / first.bincount(minlength=count).clamp(min=1).to(values)
