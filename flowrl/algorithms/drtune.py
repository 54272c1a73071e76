"""DRTune: gradients of a few spaced steps, without the network's input, up to an early stop (arXiv:2405.00760)."""

from dataclasses import replace

from flowrl.algorithms.draft import draft
from flowrl.estimators.pathwise import Replay
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2405.00760"


def drtune(
    *, steps: int = 50, trained: int = 5, stop: int = 5, guidance: float | None = None, cap: float | None = None
) -> Algorithm:
    """Reconstruction from the paper's abstract: there is no code, and neither the number of steps nor their spacing nor
    the law of the early stop is known. Here ``trained`` steps have a gradient, evenly spaced back from the judged one,
    which is drawn among the last ``stop``; after an earlier one than the last the predicted clean image is judged.

    What a step changes is carried to the end by the sampler's own recursion, not through later calls of the network:
    the memory of the trained steps alone, and no product of Jacobians.
    """
    return replace(
        draft(cap=cap),
        sampler=FlowSampler(steps=steps, window=LastSteps(), guidance=guidance),
        estimator=Replay(inputs=False, trained=trained, last="random", stop=stop),
    )
