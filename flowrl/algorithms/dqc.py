"""DQC: critics of long chunks of actions for a policy of short ones (arXiv:2512.10926)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.fql import fql
from flowrl.estimators.decoupled_q import DecoupledQ
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.decoupled_q import DecoupledQLearning
from flowrl.parts.episodes import BackupRewards

PAPER = "arXiv:2512.10926"


def dqc(
    *,
    backup: int = 5,
    kappa_d: float = 0.5,
    kappa_b: float = 0.9,
    distill_by: Literal["expectile", "quantile"] = "expectile",
    backup_by: Literal["expectile", "quantile"] = "quantile",
    candidates: int = 32,
    gamma: float = 0.999,
    tau: float = 0.005,
    aggregate: Literal["mean", "min"] = "mean",
    bound: float = 3.0,
    critics: int = 2,
    width: int = 1024,
    depth: int = 4,
    shown: int = 0,
    offline: int = 0,
    groups: int = 32,
    capacity: int = 16384,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of ColinQiyangLi/dqc (9 Jan 2026): a critic of ``backup`` decisions (its 25 actions are 5 decisions
    of a policy of chunks of 5), expectile ``kappa_d`` .5 of what it teaches the critic of one decision, quantile
    ``kappa_b`` .9 of the value, 2 critics of 4 x 1024, ``tau`` .005, gamma .999, the best of 32 ``candidates``, rate
    3e-4 (``optimizer: {lr: 3e-4, critic_lr: 3e-4}``), batches of 4096. Critics are of values in 0 to 1, so rewards
    have to be such that what is paid of an episode is in that range. Iterations are those of `fql`.

    Deviations: those of `fql`; the release learns from goals that it draws anew for each step of a data set without
    rewards, and from steps with ``backup`` more of them alone: here the last decisions of an episode count too, their
    chunk filled up with the last one; gamma is per decision; the flow is the model's own.
    """
    made = fql(
        tau=tau,
        shown=shown,
        offline=offline,
        groups=groups,
        capacity=capacity,
        environment=environment,
        decisions=decisions,
    )
    return replace(
        made,
        estimator=DecoupledQ(
            backup=backup,
            candidates=candidates,
            aggregate=aggregate,
            bound=bound,
            critics=critics,
            width=width,
            depth=depth,
        ),
        advantage=BackupRewards(gamma=gamma, backup=backup),
        objective=DecoupledQLearning(kappa_d, kappa_b, gamma, distill_by, backup_by),
    )
