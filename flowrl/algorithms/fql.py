"""FQL: a one-step actor between a flow that imitates and critics of actions (arXiv:2502.02538)."""

from typing import Literal

from flowrl.estimators.q_learning import OneStepQ
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Target
from flowrl.parts.episodes import DecisionRewards
from flowrl.parts.q_learning import FlowQLearning, NormalizedFlowQLearning
from flowrl.samplers.demonstrations import episodes
from flowrl.samplers.replayed import OldGroups

PAPER = "arXiv:2502.02538"


def fql(
    *,
    alpha: float = 10.0,
    gamma: float = 0.99,
    tau: float = 0.005,
    steps: int = 10,
    aggregate: Literal["mean", "min"] = "mean",
    normalize: bool = False,
    bound: float = 3.0,
    critics: int = 2,
    width: int = 512,
    depth: int = 4,
    shown: int = 0,
    offline: int = 0,
    groups: int = 32,
    capacity: int = 16384,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of seohongpark/fql (11 Mar 2025): ``alpha`` 10 (to be tuned for each task, there from 3 to 30000), 2
    critics of 4 x 512 with layer norm, targets by their mean, ``tau`` .005 after every optimiser step, gamma .99, 10
    flow steps, critic and actor at rate 3e-4 (``optimizer: {lr: 3e-4, critic_lr: 3e-4}``), batches of 256 decisions.

    An iteration makes episodes, adds ``groups`` whole groups of earlier iterations from a buffer of ``capacity``
    episodes, and makes ``train.updates`` times ``train.epochs`` steps over their decisions, with new noise and times in
    every epoch. With ``shown`` above 0, so many samples of each group are the recorded episode of its prompt; in the
    first ``offline`` iterations all are.

    Deviations: batches are the decisions of whole episodes, drawn without replacement, where the release draws single
    transitions; gamma is per decision (a chunk); actions are standardised and kept within ``bound`` instead of -1 to 1;
    the flow is the model's own network, pretrained, with its width; gradients are clipped
    (``optimizer.max_grad_norm``).
    """
    return Algorithm(
        sampler=episodes(environment, decisions, shown, offline),
        estimator=OneStepQ(steps=steps, aggregate=aggregate, bound=bound, critics=critics, width=width, depth=depth),
        advantage=DecisionRewards(),
        objective=(NormalizedFlowQLearning if normalize else FlowQLearning)(alpha, gamma),
        aggregation=DecisionMean(),
        replay=OldGroups(groups=groups, iterations=capacity, capacity=capacity),
        ema_weights=(Target(tau=tau),),
        redraw=True,
        min_group=1,
        families=("control",),
    )
