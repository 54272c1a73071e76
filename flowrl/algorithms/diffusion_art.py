"""DiffusionART: velocities regressed on a target moved along the covariance of reward and sample (arXiv:2610.12572)."""

from dataclasses import replace

from flowrl.algorithms.fdfo import fdfo
from flowrl.estimators.directions import Directions
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.evidence import LinearisedScore
from flowrl.parts.regularizers import Prediction
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2610.12572"


def diffusion_art(*, scale: float = 0.1, steps: int = 10, churn: float = 1e-6) -> Algorithm:
    """Reconstruction from the project's page and notes of others: at the states of (all but) deterministic rollouts v
    is regressed on the frozen ``v_old - scale A d``, d a sample's difference from its group's mean, of root mean square
    1, A its normalised reward. For pairs (``data.group: 2``) ``A d`` is the covariance of reward and sample, the same
    direction at the states of both; in larger groups every sample is moved along its own share of it alone, where the
    paper has one direction per prompt.

    Scale, normalisation and number of steps are ours; the paper's mask and its second update, which pulls back on
    another window of steps, are not known and left out.
    """
    base = fdfo(steps=steps, churn=churn)
    assert isinstance(base.sampler, FlowSampler)
    return replace(
        base,
        sampler=replace(base.sampler, share_noise=False, own_noise=0.0),
        estimator=Directions(length="unit"),
        advantage=GroupCentred(scale="group", ddof=0, eps=1e-4),
        objective=LinearisedScore(),
        regularizers=(Prediction(1 / scale, "old"),),
    )
