"""RePO: GRPO that learns again from the best earlier completions of its prompts (arXiv:2506.09340)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.replayed import Choice, SamePrompt

PAPER = "arXiv:2506.09340"


def repo(
    *,
    clip: float = 0.2,
    samples: int = 8,
    kept: int = 16,
    least: int = 16,
    choose: Choice = "best",
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """SihengLi99/RePO (of 2025-06-12, its script): from a prompt's third visit on, the 8 completions of the highest
    reward among its latest 16 join the 8 new ones, with the log-probabilities of then and a mean and deviation of their
    own (``split``); no KL. Their loss has weight 1 (``off_policy_loss_coef``). The script's top_k of 50 is
    ``sampler.top_k``."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        estimator=Tokens(trust_rollout=True),
        advantage=GroupCentred(eps=1e-4, clip=None),
        replay=SamePrompt(samples=samples, kept=kept, least=least, choose=choose),
    )
