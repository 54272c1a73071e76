"""VCRL: only prompts are trained whose rewards vary, others are sampled in their place (arXiv:2509.19803)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.selections import VariedGroups

PAPER = "arXiv:2509.19803"


def vcrl(
    *, least: float = 0.3, rounds: int = 10, clip: float = 0.2, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """Reconstruction from the abstract; .3 is said to be the threshold of its first steps (.8 later). New prompts take
    the place of its memory of prompts. For rewards from 0 to 1."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature), selection=VariedGroups(rounds, least=least)
    )
