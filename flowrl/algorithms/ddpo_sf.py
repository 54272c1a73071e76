"""DDPO with the score function: REINFORCE on the steps of a DDIM chain, one update per batch (arXiv:2305.13301)."""

from dataclasses import replace

from flowrl.algorithms.ddpo import ddpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction

PAPER = "arXiv:2305.13301"


def ddpo_sf(*, eta: float = 1.0, steps: int = 50, buffer: int = 16) -> Algorithm:
    """`ddpo` without the ratio: correct only while the samples are the policy's own (``train.updates=1,
    train.epochs=1``)."""
    return replace(ddpo(eta=eta, steps=steps, buffer=buffer), objective=ScoreFunction())
