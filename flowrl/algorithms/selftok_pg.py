"""Selftok-Zero: the plain policy gradient on the tokens of a picture (arXiv:2505.07538)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2505.07538"


def selftok_pg(*, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """A reconstruction: the paper's abstract says "a simple policy gradient", without clip or reference; that the
    reward is centred and scaled within the prompt's group is ours, and so are all numbers. ``length`` is the number of
    tokens of a picture, of a causal model with an image tokenizer (``model.image_tokenizer``); Selftok's own tokens
    follow the steps of a diffusion, any tokenizer of diffusers' `VQModel` will do here."""
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=GroupCentred(),
        aggregation=DecisionMean(),
        min_group=2,
    )
