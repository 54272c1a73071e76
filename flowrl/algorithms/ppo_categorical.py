"""PPO of a policy that chooses among n actions in an environment, as in CleanRL (arXiv:1707.06347)."""

from dataclasses import replace

from flowrl.algorithms.ppo_gaussian import ppo_gaussian
from flowrl.estimators.categorical import CategoricalActions
from flowrl.estimators.episodes import PerDecision
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regularizers import Entropy
from flowrl.samplers.categorical import CategoricalSampler
from flowrl.samplers.episodes import EpisodeSampler

PAPER = "arXiv:1707.06347"


def ppo_categorical(
    *,
    clip: float = 0.2,
    value: float = 0.5,
    entropy: float = 0.01,
    gamma: float = 0.99,
    lam: float = 0.95,
    environment: str = "gym:CartPole-v1",
    decisions: int = 500,
) -> Algorithm:
    """`ppo_gaussian` for environments with ``Discrete`` actions; the settings of vwxyzjn/cleanrl's ppo.py: clip .2,
    value loss .5 clipped at .2, entropy bonus .01, gamma .99, lambda .95; there also 128 steps of 4 environments, 4
    epochs of 4 minibatches, rate 2.5e-4 falling to 0, Adam eps 1e-5, gradients clipped at .5. The model is of the kind
    ``categorical``; ``model: {path: "new:gym:CartPole-v1"}`` is an untrained one of the script's size.

    Deviations: whole episodes instead of 128 steps that may begin and end within one, and minibatches of whole
    episodes; time limits are no ends (``truncation: terminate`` is CleanRL's); advantages are whitened over an
    iteration instead of a minibatch; the critic is a network of 128 units with an optimiser group and a clip of its
    own.
    """
    base = ppo_gaussian(clip=clip, value=value, gamma=gamma, lam=lam)
    return replace(
        base,
        sampler=EpisodeSampler(sampler=CategoricalSampler(), environment=environment, decisions=decisions),
        estimator=PerDecision(estimator=CategoricalActions()),
        regularizers=(*base.regularizers, Entropy(entropy)),
    )
