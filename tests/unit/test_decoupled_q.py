"""Decoupled Q-chunking: regressions in closed form, chunks of several decisions, exact values of a small process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowrl.algorithms.dqc import dqc
from flowrl.estimators.decoupled_q import DecoupledQ
from flowrl.parts.decoupled_q import DecoupledQLearning, asymmetric
from flowrl.parts.episodes import BackupRewards
from flowrl.step import UpdateSettings, improve
from flowrl.types import Episodes, Scores
from tests.contract.toys import roll, small, start
from tests.unit.test_off_policy import ACTIONS, ENDS, NEXT, STATES, Table, every_transition, tabular


@pytest.mark.parametrize(("by", "above"), [("expectile", 0.5), ("expectile", 0.8), ("quantile", 0.7)])
def test_regressions_end_at_the_expectile_and_the_quantile(by: Any, above: float) -> None:
    targets = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for step in range(4000):
        (slope,) = torch.autograd.grad(asymmetric(logit.expand(5), targets, above, by).mean(), [logit])
        with torch.no_grad():
            logit -= (1.0 if by == "expectile" else 0.3 / (1 + 0.05 * step)) * slope
    value = float(logit.detach().sigmoid())
    if by == "expectile":  # where what is above and what is below balance, each by its weight
        balance = torch.where(targets >= value, above, 1 - above) * (targets - value)
        assert float(balance.sum()) == pytest.approx(0, abs=1e-6)
        assert above != 0.5 or value == pytest.approx(0.3, abs=1e-6)
    else:  # the fourth of five: below it .7 * 2 > .3 * 3, above it .7 * 1 < .3 * 4
        assert value == pytest.approx(0.4, abs=2e-3)


class OfOneState(nn.Module):
    """A critic of states alone."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, 3))

    def forward(self, features: Tensor, chunk: Tensor | None = None, fixed: bool = False) -> Tensor:
        return self.value[:, features.argmax(dim=1)]


@pytest.mark.slow
def test_chunks_of_one_decision_teach_their_own_exact_values() -> None:
    """backup 1: the partial critics come to what the chunk critics are; with means in the place of optimism those come
    to the values of the policy that made the data, both actions alike, which solve a linear system."""
    algorithm = dqc(backup=1, kappa_b=0.5, backup_by="expectile", gamma=0.5, tau=1.0, width=4, depth=1)
    policy = tabular(algorithm, q=Table((3, 2)), partial=Table((3, 2)), value=OfOneState())
    made, scores, paid = every_transition()
    paid = (paid + 1) / 8  # 0 to 3 / 8, so that values stay below 1
    optimizer = torch.optim.SGD(policy.critic_parameters(), lr=20.0)
    for _ in range(300):
        improve(policy, optimizer, algorithm, made, scores, paid, UpdateSettings(max_grad_norm=1e9))
    a, b = torch.eye(6, dtype=torch.float64), paid.flatten()
    for s in range(STATES):
        for u in range(ACTIONS):
            if not ENDS[s, u]:
                a[2 * s + u, 2 * int(NEXT[s, u]) : 2 * int(NEXT[s, u]) + 2] -= 0.5 / 2
    wanted = torch.linalg.solve(a, b).view(3, 2)
    chunk = policy.network.beside["q"].value.detach().sigmoid().double()
    partial = policy.network.beside["partial"].value.detach().sigmoid().double()
    assert torch.allclose(chunk, wanted.expand(2, 3, 2), atol=2e-3)
    assert torch.allclose(partial, chunk, atol=2e-3)


def test_chunks_of_several_decisions_end_with_their_episode() -> None:
    """Three episodes of 3, 2 and 1 decisions, the second cut by the time limit; two decisions of a chunk."""
    made, _, _ = every_transition()
    observed = torch.arange(12.0).view(3, 4, 1, 1).expand(3, 4, 1, 3)
    alive = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    trace = Episodes(observed, torch.arange(9.0).view(3, 3, 1, 1), alive, torch.tensor([False, True, False]))
    rollout = replace(made, trace=trace, seeds=torch.arange(3))
    rows = DecoupledQ(backup=2).probe(rollout, None, torch.arange(3))
    assert rows.chunks[..., 0, 0][alive].tolist() == [[0, 1], [1, 2], [2, 2], [3, 4], [4, 4], [6, 6]]
    assert rows.following[..., 0, 0][alive].tolist() == [2, 3, 3, 6, 6, 9]
    assert rows.steps[alive].tolist() == [2, 2, 1, 2, 1, 1]
    assert (
        rows.continues[alive].tolist() == [True, False, False, True, True, False] and not rows.continues[~alive].any()
    )
    paid = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, torch.nan], [5.0, torch.nan, torch.nan]], dtype=torch.float64)
    number = torch.arange(3)
    total = paid.nansum(dim=1)[:, None]
    scores = Scores(
        total, torch.tensor([2.0]).double(), ("episode_return",), number, number, number >= 0, feedback=paid
    )
    found = BackupRewards(gamma=0.5, backup=2)(scores, {})
    assert torch.equal(found, 2 * torch.tensor([[2.0, 4.0, 4.0], [2.5, 3.0, 0.0], [5.0, 0.0, 0.0]]).double())


def test_the_long_critic_learns_from_nobody_it_teaches() -> None:
    """What the partial critics are taught, and what they and the value say of the next, has no gradient."""
    algorithm = small("dqc")
    policy = start(algorithm)
    it = roll(algorithm, policy)
    rows: Any = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
    live = algorithm.estimator(policy, rows, it.rollout.condition)
    held = [name for name, value in live.extra.items() if value.requires_grad]
    assert sorted(held) == ["partial/0", "partial/1", "q/0", "q/1", "value"] and live.logp.requires_grad
    later = live.extra["next_value"][rows.alive & ~rows.continues]
    assert bool((later == 0).all()) and bool((live.extra["next_value"][rows.continues] > 0).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DecoupledQ(backup=0), "backup=0"),
        (lambda: DecoupledQLearning(distill=1.0), r"distill=1\.0"),
        (lambda: DecoupledQLearning(backup=0.0), r"backup=0\.0"),
        (lambda: BackupRewards(gamma=2), "gamma=2"),
    ],
)
def test_options_without_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
