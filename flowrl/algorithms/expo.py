"""EXPO: a flow that imitates, an editor that a critic trains, and the critic's choice among both (arXiv:2507.07986)."""

from dataclasses import replace

from flowrl.algorithms.fql import fql
from flowrl.estimators.q_candidates import EditedActions
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.q_candidates import Edited

PAPER = "arXiv:2507.07986"


def expo(
    *,
    candidates: int = 8,
    edits: int = 8,
    scale: float = 0.05,
    gamma: float = 0.99,
    tau: float = 0.005,
    bound: float = 3.0,
    critics: int = 2,
    width: int = 256,
    depth: int = 3,
    shown: int = 0,
    offline: int = 0,
    groups: int = 32,
    capacity: int = 16384,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of pd-perry/EXPO (2025; its repository could not be fetched, the learner and its commands were read
    in stored copies): 8 samples of the base and their 8 edits, ``scale`` .05 (robomimic; .7 for Adroit), networks of
    3 x 256, layer norm in critics, ``tau`` .005, gamma .99, no entropy in targets, a wanted entropy of -1/2 for each
    number, rate 3e-4 of everything, batches of 256 and 20 critic steps for each step of the environment.

    Deviations: the least of ``critics`` (there 10, of which 2 drawn ones are compared); all networks learn in the same
    steps; the policy acts with its live weights and critics (there averages of them); the base is a flow; the matching
    error is a mean over a chunk's numbers, there a sum; networks are those of `fql`; batches are the decisions of whole
    episodes, as there; gamma is per decision; actions are standardised.
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
    estimator = EditedActions(
        candidates=candidates, edits=edits, scale=scale, bound=bound, critics=critics, width=width, depth=depth
    )
    return replace(made, estimator=estimator, objective=Edited(gamma))
