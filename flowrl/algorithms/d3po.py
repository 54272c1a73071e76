"""D3PO: a logistic loss on every denoising step of a preferred and a rejected trajectory (arXiv:2311.13231)."""

from dataclasses import replace

from flowrl.algorithms.ddpo import ddpo
from flowrl.parts.advantages import BestVersusWorst
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.contrasts import DecisionPair
from flowrl.parts.selections import NonzeroAdvantage

PAPER = "arXiv:2311.13231"


def d3po(*, beta: float = 0.1, clip: float | None = 0.1, eta: float = 1.0, steps: int = 20) -> Algorithm:
    """The settings of yk7333/d3po (40d3175) for SD1.5: 20 DDIM steps with full noise, guidance in training too, mean
    log-probabilities, the ratio to the reference cut to ``1 -+ clip`` inside the logarithm. With these two numbers the
    logit never exceeds .0201 and nothing pulls back what has left the band: ``clip: null`` is plain DPO of steps.

    The best and the worst sample of a group by the reward stand in for people's rankings of seven pictures a prompt.
    """
    return replace(
        ddpo(eta=eta, steps=steps),
        advantage=BestVersusWorst(),
        objective=DecisionPair(beta, clip),
        selection=NonzeroAdvantage(),
        min_group=2,
    )
