"""Token advantages that look at tokens, lengths and the policy that sampled, and bounds and weights of each decision
(``low``, ``high``, ``kl_weight`` in ``old.extra``, which `Clipped` and `KL` read)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.math.groups import group_count, group_mean, group_std, group_sum
from flowrl.parts.token_advantages import last_of, old_of, whitened
from flowrl.types import IncompatibleError, Table


class NoReference:
    """A token advantage that compares with no weight set."""

    @property
    def reference(self) -> str:
        return ""


@dataclass(frozen=True)
class PriorBounds(NoReference):
    """Bounds of a ratio by how likely the token was, the solutions of ``|rho - 1| rho p_old = low`` or ``high``:
    ``1/2 + sqrt(max(1 - 4 low / p, 0)) / 2`` and ``1/2 + sqrt(1 + 4 high / p) / 2``, the latter at most ``most``.
    DCPO's dynamic clip (arXiv:2509.02333): rare tokens may change more."""

    low: float = 0.16
    high: float = 0.2
    most: float = 10.0

    def __call__(self, table: Table) -> Table:
        p = old_of(table).logp.double().exp()
        low = 0.5 + 0.5 * (1 - 4 * self.low / p).clamp(min=0).sqrt()
        high = (0.5 + 0.5 * (1 + 4 * self.high / p).sqrt()).clamp(max=self.most)
        return _with(table, low=1 - low, high=high - 1)


@dataclass(frozen=True)
class ElasticBounds(NoReference):
    """Bounds ``low f``, ``high f`` with ``f = (1 + by_advantage tanh |A|) (1 + by_variance 4 p (1 - p))`` and the share
    p of the group's samples with ``A > 0``: more room for clear signals and for prompts that are neither easy nor hard.
    ETR (arXiv:2601.03723), whose exact form is not public."""

    low: float = 0.2
    high: float = 0.2
    by_advantage: float = 0.5
    by_variance: float = 0.5

    def __call__(self, table: Table) -> Table:
        advantage, there = _of_samples(table), table.mask.any(dim=1)
        p = group_mean((advantage > 0).double(), table.group, there)
        factor = (1 + self.by_advantage * advantage.abs().tanh()) * (1 + self.by_variance * 4 * p * (1 - p))
        wide = factor[:, None].expand(table.mask.shape)
        return _with(table, low=self.low * wide, high=self.high * wide)


@dataclass(frozen=True)
class AsymmetricPenalties(NoReference):
    """Good samples are held less to the reference the harder the prompt is, bad ones are blamed for length. APO
    (arXiv:2506.21655; Indolent-Kawhi/View-R1).

    ``kl_weight`` is ``1 - exp(-e (1 - d))`` where ``A > 0``, with the share d of the group's samples that are not good
    (the release also holds the opposite rule, commented out), and 1 elsewhere. Bad samples longer than the mean good
    one, by l tokens, get ``A (2 - growth^-l)``.
    """

    growth: float = 1.00001

    def __call__(self, table: Table) -> Table:
        advantage, there = _of_samples(table), table.mask.any(dim=1)
        good, length = (advantage > 0) & there, table.mask.sum(dim=1).double()
        easy = group_mean(good.double(), table.group, there)
        weight = torch.where(good, 1 - torch.exp(-math.e * easy), torch.ones_like(easy))
        beyond = (length - group_mean(length, table.group, good)).clamp(min=0)
        blame = (advantage < 0) & (group_count(table.group, good) > 0)
        factor = torch.where(blame, 2 - self.growth ** (-beyond), torch.ones_like(beyond))
        made = _with(table, kl_weight=weight[:, None].expand(table.mask.shape))
        return replace(made, advantage=table.advantage * factor[:, None])


@dataclass(frozen=True)
class TokenGroup(NoReference):
    """``(r - mean) / std`` over all tokens of the group, each with its sample's reward, so that the mean over tokens is
    0 whatever the lengths; where that is ``most`` or more anywhere in a group, over its samples (GRPO). HAPO
    (arXiv:2509.16591). Takes rewards (`RawReward`)."""

    most: float = 5.0
    eps: float = 1e-6

    def __call__(self, table: Table) -> Table:
        reward, length = _of_samples(table), table.mask.sum(dim=1).double()
        there = length > 0
        total = group_sum(length, table.group, there).clamp(min=1)
        centred = reward - group_sum(length * reward, table.group, there) / total
        spread = (group_sum(length * centred**2, table.group, there) / total).sqrt()
        found = centred / (spread + self.eps)
        large = group_sum((found.abs() >= self.most).double(), table.group, there) > 0
        found = torch.where(large, _grpo(table, reward, self.eps), found)
        return replace(table, advantage=found[:, None].expand(table.mask.shape))


@dataclass(frozen=True)
class ZeroVarianceEntropy(NoReference):
    """GRPO's advantage, and in groups whose samples all scored the same ``strength H`` of every token where they are
    right (above ``right``) and ``-strength (max H - H)`` where they are wrong, with the largest entropy of the
    completion. RL-ZVP (arXiv:2509.21880): such groups teach as well. Takes rewards (`RawReward`)."""

    strength: float = 0.1
    right: float = 0.5

    def __call__(self, table: Table) -> Table:
        reward, there = _of_samples(table), table.mask.any(dim=1)
        flat = group_std(reward, table.group, there, 0) == 0
        entropy = torch.where(table.mask, old_of(table).need("entropy").double().nan_to_num(0.0), 0.0)
        shaped = torch.where(
            (reward > self.right)[:, None],
            self.strength * entropy,
            -self.strength * (entropy.max(dim=1, keepdim=True).values - entropy),
        )
        return replace(table, advantage=torch.where(flat[:, None], shaped, _grpo(table, reward, 1e-6)[:, None]))


@dataclass(frozen=True)
class EntropyBonus(NoReference):
    """``A + min(strength H, |A| / share)`` with the entropy H of each token under the policy that sampled: uncertain
    tokens of good samples are raised more, those of bad ones pushed less, and no sign changes for ``share > 1``.
    Reasoning with exploration (arXiv:2506.14758)."""

    strength: float = 0.4
    share: float = 2.0

    def __post_init__(self) -> None:
        if not self.share >= 1:
            raise ValueError(f"share={self.share} below 1 lets the bonus turn the sign of an advantage: give 1 or more")

    def __call__(self, table: Table) -> Table:
        entropy = torch.where(table.mask, old_of(table).need("entropy").double().nan_to_num(0.0), 0.0)
        bonus = torch.minimum(self.strength * entropy, table.advantage.abs() / self.share)
        return replace(table, advantage=table.advantage + bonus)


@dataclass(frozen=True)
class ConfidencePenalty(NoReference):
    """GRPO's advantage of ``r - (1 - r) p / (d - p)`` with the completion's probability p per token and the prompt's
    ``difficulty`` d in (0, 1]: wrong answers cost more the surer they are, so a group without a right one is not lost.
    LENS (arXiv:2510.08696), which estimates d and p in ways that are not public; the fraction is at most ``most``, as
    it has a pole. Takes rewards from 0 to 1 (`RawReward`)."""

    difficulty: float = 1.0
    most: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.difficulty <= 1:
            raise ValueError(f"difficulty={self.difficulty} is 1 over what a right answer can have: give 0 < d <= 1")

    def __call__(self, table: Table) -> Table:
        logp = torch.where(table.mask, old_of(table).logp.double(), 0.0)
        p = (logp.sum(dim=1) / table.mask.sum(dim=1).clamp(min=1)).exp()
        reward = _of_samples(table)
        shaped = reward - (1 - reward) * self.penalty(p)
        return replace(table, advantage=_grpo(table, shaped, 1e-6)[:, None].expand(table.mask.shape))

    def penalty(self, p: Tensor) -> Tensor:
        """``p / (d - p)``, at most ``most``."""
        return torch.where(p < self.difficulty, p / (self.difficulty - p).clamp(min=1e-12), self.most).clamp(
            max=self.most
        )


@dataclass(frozen=True)
class ConflictTokens(NoReference):
    """Tokens that good and bad samples of a group begin or end with alike, place by place, are not pushed down by the
    bad ones and count twice in the good ones; completions of a mean entropy above ``most`` get no advantage, others
    less by ``entropy`` times it. GTPO (arXiv:2508.03772; winstonsmith1897/GTPO, which multiplies the factors of both
    ends, so that a token of both counts four times, and divides a completion's loss by its number of such tokens)."""

    most: float = 0.7
    entropy: float = 0.1

    def __call__(self, table: Table) -> Table:
        tokens = getattr(table.rows, "tokens", None)
        if not isinstance(tokens, Tensor):
            raise IncompatibleError("token_advantage ConflictTokens reads tokens: use it with the tokens estimator")
        advantage = _of_samples(table)
        shared = torch.zeros_like(table.mask)
        for key in table.group.unique():
            rows = (table.group == key).nonzero()[:, 0]
            shared[rows] = conflicts(tokens[rows], table.mask[rows], advantage[rows])
        factor = torch.where(shared, torch.where(advantage > 0, 2.0, 0.0)[:, None], 1.0).double()
        known = torch.where(table.mask, old_of(table).need("entropy").double().nan_to_num(0.0), 0.0)
        mean = known.sum(dim=1) / table.mask.sum(dim=1).clamp(min=1)
        level = torch.where(mean > self.most, 0.0, advantage - self.entropy * mean)
        return replace(table, advantage=level[:, None] * factor)


@dataclass(frozen=True)
class LengthGate(NoReference):
    """Groups count ``factor`` times unless their longest good sample is longer than the mean bad one (of those shorter
    than ``longest`` tokens): while long answers are of use. ADORA (arXiv:2602.10019; ShadeCloak/ADORA), whose good
    samples score above 1.01; here those of positive advantage."""

    factor: float = 0.1
    longest: int = 4054

    def __call__(self, table: Table) -> Table:
        advantage, length = _of_samples(table), table.mask.sum(dim=1).double()
        wrong = (advantage < 0) & (length < self.longest)
        mean = group_mean(length, table.group, wrong)
        useful = (advantage > 0) & (length > mean)
        gate = torch.full_like(length, self.factor).masked_fill(group_count(table.group, useful) > 0, 1.0)
        return replace(table, advantage=table.advantage * gate[:, None])


@dataclass(frozen=True)
class LengthBaseline(NoReference):
    """``r - sum L r / sum L`` over the group: the baseline of least variance if the squared gradient of a completion
    grows like its length L. OPO (arXiv:2505.23585; verl's ``opo``). Takes rewards (`RawReward`)."""

    def __call__(self, table: Table) -> Table:
        reward, length = _of_samples(table), table.mask.sum(dim=1).double()
        there = length > 0
        baseline = group_sum(length * reward, table.group, there) / group_sum(length, table.group, there).clamp(min=1)
        return replace(table, advantage=(reward - baseline)[:, None].expand(table.mask.shape))


@dataclass(frozen=True)
class MacroGAE(NoReference):
    """`GAE` over macro actions of ``n`` tokens, whose value is the mean of their tokens'; the last token is one by
    itself and has the reward. Every token has its macro action's advantage and return, and its own ratio. MA-RLHF
    (arXiv:2410.02743; ernie-research/MA-RLHF). ``n = 1`` is `GAE`."""

    n: int = 5
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n} tokens make no macro action; give 1 or more")

    def __call__(self, table: Table) -> Table:
        mask, old = table.mask, old_of(table)
        last = last_of(mask)
        macro = ((mask.cumsum(dim=1) - 1).clamp(min=0) // self.n) + last.long()
        macro = torch.where(mask, macro, 0)
        value = torch.where(mask, old.need("value").double(), 0.0)
        empty = torch.zeros(len(mask), int(macro.max()) + 2, dtype=torch.float64)
        count = empty.scatter_add(1, macro, mask.double())
        means = empty.scatter_add(1, macro, value) / count.clamp(min=1)
        reward = empty.scatter_add(1, macro, torch.where(last, table.advantage.double(), 0.0))
        advantage, running, later = empty.clone(), empty[:, 0].clone(), empty[:, 0].clone()
        for m in reversed(range(empty.shape[1])):
            there = count[:, m] > 0
            delta = reward[:, m] + self.gamma * later - means[:, m]
            running = torch.where(there, delta + self.gamma * self.lam * running, running)
            later = torch.where(there, means[:, m], later)
            advantage[:, m] = running
        each = torch.where(mask, advantage.gather(1, macro), 0.0)
        made = _with(table, returns=torch.where(mask, each + means.gather(1, macro), 0.0))
        return replace(made, advantage=whitened(each, mask) if self.whiten else each)


def conflicts(tokens: Tensor, mask: Tensor, advantage: Tensor) -> Tensor:
    """[N, T] bool: tokens of one group, in a run from the first or the last token that counts, that a good and a bad
    sample both have in their place."""
    from_end = mask.flip(1).cumsum(dim=1).flip(1) - 1  # place counted from the end
    from_start = mask.cumsum(dim=1) - 1
    found = torch.zeros_like(mask)
    for place, forward in ((from_start, True), (from_end, False)):
        seen = [
            {(int(p), int(t)) for p, t in zip(place[some][mask[some]], tokens[some][mask[some]], strict=True)}
            for some in (advantage > 0, advantage < 0)
        ]
        both = seen[0] & seen[1]
        for row in range(len(mask)):
            if not advantage[row]:
                continue
            columns = mask[row].nonzero()[:, 0].tolist()
            for column in columns if forward else reversed(columns):
                if (int(place[row, column]), int(tokens[row, column])) not in both:
                    break
                found[row, column] = True
    return found


def _of_samples(table: Table) -> Tensor:
    """[N] what all decisions of a sample that count have."""
    first = table.mask.int().argmax(dim=1, keepdim=True)
    return table.advantage.gather(1, first)[:, 0].double()


def _grpo(table: Table, reward: Tensor, eps: float) -> Tensor:
    """[N] ``(r - mean) / (std + eps)`` of the group's samples that take part."""
    there = table.mask.any(dim=1)
    return (reward - group_mean(reward, table.group, there)) / (group_std(reward, table.group, there, 1) + eps)


def _with(table: Table, **extra: Tensor) -> Table:
    old = old_of(table)
    return replace(table, old=replace(old, extra={**old.extra, **extra}))
