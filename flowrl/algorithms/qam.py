"""QAM: a flow drawn to what critics of actions like, by adjoint matching (arXiv:2601.14234)."""

from dataclasses import replace

from flowrl.algorithms.fql import fql
from flowrl.estimators.adjoint_q import AdjointQ
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.q_learning import AdjointQLearning

PAPER = "arXiv:2601.14234"


def qam(
    *,
    inverse_temperature: float = 0.3,
    gamma: float = 0.99,
    tau: float = 0.005,
    steps: int = 10,
    pessimism: float = 0.5,
    bound: float = 3.0,
    critics: int = 10,
    width: int = 512,
    depth: int = 4,
    shown: int = 0,
    offline: int = 0,
    groups: int = 32,
    capacity: int = 16384,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of ColinQiyangLi/qam (30 Jan 2026): ``inverse_temperature`` .3 (to be tuned for each task, 3 in its
    example), 10 critics of 4 x 512 with layer norm, whose mean less half their deviation is the next value, ``tau``
    .005 for critics and imitating flow, gamma .99, 10 flow steps, gradients clipped at 1, rate 3e-4 (``optimizer: {lr:
    3e-4, critic_lr: 3e-4}``), batches of 256. Iterations are those of `fql`.

    Deviations: those of `fql`, but for the clipping, which is by itself for the critics here; the policy acts in the
    model's own number of steps; both flows begin as the model's own, there untrained; the variants with a one-step
    actor, with edited actions and with a residual flow are not here.
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
        estimator=AdjointQ(
            steps=steps,
            inverse_temperature=inverse_temperature,
            pessimism=pessimism,
            bound=bound,
            critics=critics,
            width=width,
            depth=depth,
        ),
        objective=AdjointQLearning(gamma),
    )
