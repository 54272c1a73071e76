"""PA-RL: a policy imitates its own samples after a critic chose and improved them (arXiv:2412.06685)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.fql import fql
from flowrl.estimators.q_candidates import OptimizedActions
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.q_candidates import Distilled

PAPER = "arXiv:2412.06685"


def pa_rl(
    *,
    candidates: int = 32,
    keep: int = 10,
    climb: int = 10,
    rate: float = 3e-4,
    distill: Literal["sample", "argmax"] = "sample",
    gamma: float = 0.99,
    tau: float = 0.005,
    bound: float = 3.0,
    critics: int = 2,
    width: int = 256,
    depth: int = 2,
    shown: int = 0,
    offline: int = 0,
    groups: int = 32,
    capacity: int = 16384,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of MaxSobolMark/PolicyAgnosticRL (3 Aug 2025, configs/base_config.py): of 32 samples the critic
    keeps 10, which take 10 steps of 3e-4 up its mean; the recorded action stands among them when the policy imitates
    one, by the softmax of Q; it acts by the best. ``tau`` .005, gamma .99, batches of 256, critic at rate 3e-4 and
    policy at 5e-5 (``optimizer: {lr: 5e-5, critic_lr: 3e-4}``).

    Deviations: critics learn the squared error (there Cal-QL: a distribution over 128 bins and a penalty of .005 on
    actions of the policy, with 10 critics of which 2 drawn ones are compared; here the least of ``critics``); policy
    and critics learn in the same steps (there the policy once in many critic steps); the base is a flow; networks are
    those of `fql`; batches are the decisions of whole episodes, as there; gamma is per decision; actions are
    standardised.
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
    estimator = OptimizedActions(
        candidates=candidates,
        keep=keep,
        climb=climb,
        rate=rate,
        distill=distill,
        bound=bound,
        critics=critics,
        width=width,
        depth=depth,
    )
    return replace(made, estimator=estimator, objective=Distilled(gamma))
