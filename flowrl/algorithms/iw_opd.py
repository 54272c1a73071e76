"""IW-OPD: on-policy distillation that gives more weight to tokens before a completion's disagreements with the teacher
have added up (arXiv:2606.22600)."""

from dataclasses import replace

from flowrl.algorithms.opd import opd
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.distillation import TeacherReward
from flowrl.parts.objectives import ScoreFunction

PAPER = "arXiv:2606.22600"


def iw_opd(*, decay: float = 0.5, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As TRL 1.16.0 has it (``experimental.iw_opd``, ``iw_opd_gamma`` .5): the weight falls from ``1 + decay`` at the
    first token towards 1 at the last, by the share of all disagreement that came before; no ratio and no clip."""
    return replace(
        opd(length=length, temperature=temperature),
        token_advantage=(TeacherReward(decay=decay),),
        objective=ScoreFunction(),
    )
