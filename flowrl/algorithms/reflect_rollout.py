"""Policy gradient over a whole rollout of drafting and editing, rewarded for what was edited (ReflectDrive-2)."""

from dataclasses import replace

from flowrl.algorithms.trajectory_pg import trajectory_pg
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.path_views import RecordedSteps
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.editing import EditingSampler

PAPER = "ReflectDrive-2"


def reflect_rollout(
    *,
    edits: int = 2,
    below: float = 0.3,
    length: int = 16,
    steps: int = 8,
    block: int | None = None,
    temperature: float = 1.0,
) -> Algorithm:
    """Reconstruction: the report's log-probability, clip and rule of editing were not visible, and no code is public.
    The gradient of the expected reward of the edited completion, over every token that was drawn in draft or edit
    (`EditingSampler`), with the reward less the mean of the group; the draft is 16 tokens long, as its plans are.
    """
    sampler = EditingSampler(length=length, steps=steps, block=block, temperature=temperature, edits=edits, below=below)
    return replace(
        trajectory_pg(),
        sampler=sampler,
        estimator=MaskedViews(views=RecordedSteps(limit=sampler.kept_steps), per="cell", tempered=True),
        advantage=GroupCentred(scale="none", clip=None),
    )
