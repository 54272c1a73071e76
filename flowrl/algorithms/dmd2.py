"""DMD2: a few-step model is matched to a many-step one by the difference of two scores, one of which learns beside it
(arXiv:2405.14867)."""

from flowrl.estimators.distribution import PredictedMatching, ScoreDifference
from flowrl.estimators.times import TrainingTimes
from flowrl.math.flow import CPS
from flowrl.parts.advantages import Ones
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.companions import Companion
from flowrl.parts.objectives import ScoreFunction
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2405.14867"


def dmd2(
    *, steps: int = 4, guidance: float | None = 8.0, real: str = "reference", updates: int = 5, lr: float | None = None
) -> Algorithm:
    """The settings of tianweiy/DMD2 (8d8fa55), SDXL in four steps: predict and noise again; the difference at indices
    20 to 980 of Stable Diffusion's training, the fake score learns at all of them, by its error of the noise; both at
    ``optimizer.lr`` (5e-7 there, 5e-5 of the LoRA; ``optimizer.max_grad_norm: 10``). Rewards are only watched. For flow
    models take even times: ``estimator: {times: {use: uniform_times, low: 0.02, high: 0.98}}``.

    The model's scheduler has to begin at pure noise (``timestep_spacing: trailing`` of Stable Diffusion's), and
    ``model.call`` to have guidance, for the real score; ``guidance: 1`` is of models without.

    real: who has the real score: what training starts from, or a teacher, ``teachers: {NAME: {path: ...}}``, where that
        is a few-step model already.
    guidance: of the real score; 8 for SDXL, 1.75 for SD1.5.
    updates: of the fake score in an iteration, each on its part of the samples.
    lr: of the fake score; ``null``: ``optimizer.lr``.

    Deviations: the release's GAN loss on real pictures (weight 5e-3) is left out. A sample draws its
    step, in the release a batch; the fake score learns before the policy's update, there after it.
    """
    fake = PredictedMatching(draws=1, times=TrainingTimes(), weight="noise")
    return Algorithm(
        sampler=FlowSampler(
            steps=steps, dynamics=CPS(1.0), window=LastSteps(noise=True), guidance=1.0, heldout_noise=True
        ),
        estimator=ScoreDifference(real=real, guidance=guidance, times=TrainingTimes(start=20, stop=981)),
        advantage=Ones(),
        objective=ScoreFunction(),
        companions=(Companion(name="fake", estimator=fake, updates=updates, lr=lr),),
        teachers=() if real == "reference" else (real,),
        min_group=1,
    )
