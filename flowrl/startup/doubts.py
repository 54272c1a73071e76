"""What is legal in a run and yet seldom meant, seen in its config and prompts, and in the device it is for."""

from __future__ import annotations

from flowrl.environments.opening import GYM
from flowrl.parts.penalty_weights import Doubted
from flowrl.startup.memory import device_kind
from flowrl.startup.preflight import CheckedRun
from flowrl.worlds import world_names

ENOUGH_STEPS = 10
"""Of a control policy's sampler, for ratios of matching errors."""


def doubts(run: CheckedRun) -> list[str]:
    """A sentence for each, with the key to change."""
    found = (
        _seen_prompts(run),
        _repeated_prompts(run),
        _single_update(run),
        _full_precision(run),
        _no_novelty(run),
        _no_judge(run),
        _coarse_matching(run),
    )
    return [sentence for sentence in found if sentence]


def _seen_prompts(run: CheckedRun) -> str:
    if run.test is None or str(run.config.data.test).startswith(GYM):  # its episodes differ by their seeds
        return ""
    trained = {prompt.text for prompt in run.train.prompts}
    seen = sum(prompt.text in trained for prompt in run.test.prompts)
    if not seen:
        return ""
    return f"{seen} of {len(run.test)} prompts of data.test are in data.train too: scores on them are no held-out ones"


def _repeated_prompts(run: CheckedRun) -> str:
    wanted, there = run.config.data.prompts, len(run.train)
    if wanted <= there:
        return ""
    return (
        f"data.prompts={wanted} are drawn in an iteration, and data.train has {there}: lower it, and raise data.group "
        "instead, so that samples of a prompt are compared in one group"
    )


def _single_update(run: CheckedRun) -> str:
    """A clipped ratio that can never leave 1."""
    objective = run.algorithm.objective
    if run.workload.optimizer_steps > 1 or not objective.clip_range or not objective.needs_old_logp:
        return ""
    return (
        "train.updates=1 and train.epochs=1: every ratio is 1 when it is used, so the clip never acts (on-policy); "
        "raise one of them to use samples more than once"
    )


def _full_precision(run: CheckedRun) -> str:
    """The default, which is right for small models and on CPUs."""
    model = run.config.model
    if model.dtype != "float32" or device_kind(run.config) == "cpu" or model.path in world_names():
        return ""
    return (
        "model.dtype=float32, the default, on an accelerator: model.dtype=bfloat16, or float16, takes half the memory "
        "for the frozen network, and less time"
    )


def _no_novelty(run: CheckedRun) -> str:
    """An advantage that looks for a watched reward, and would do without."""
    wanted = getattr(run.algorithm.advantage, "novelty", None)
    if wanted is None or wanted in {reward.name or reward.use for reward in run.config.rewards}:
        return ""
    return (
        f"algorithm.advantage looks for a reward that is called {wanted!r}, and there is none, so that how unlike "
        f"samples are counts nothing: add {{use: {wanted}, train: false}} to rewards, or one with name: {wanted}"
    )


def _no_judge(run: CheckedRun) -> str:
    """A gate that would be open for all samples."""
    gate = run.algorithm.penalty_weight
    if not isinstance(gate, Doubted) or gate.judges:
        return ""
    watched = [reward for reward in run.config.rewards if not reward.factor]
    if any((reward.name or reward.use) != gate.novelty for reward in watched):
        return ""
    return (
        "algorithm.penalty_weight compares the reward with rewards that are watched, and there is none, so that the KL "
        "holds all samples: add one with train: false, such as another scorer"
    )


def _coarse_matching(run: CheckedRun) -> str:
    """FPO in control: with few steps its gradient is no zero for a constant advantage (`benchmarks/fpo_drift.py`)."""
    algorithm, sampler = run.algorithm, getattr(run.algorithm.sampler, "sampler", None)
    steps = getattr(sampler, "steps", None)
    if algorithm.family != "control" or not algorithm.clips_in_units or steps is None:
        return ""
    said = []
    if steps < ENOUGH_STEPS:
        said.append(f"algorithm.sampler.sampler.steps={steps}, and {ENOUGH_STEPS} or more lessen it")
    if algorithm.valued and not run.config.optimizer.critic_warmup:
        said.append("optimizer.critic_warmup=0, and a critic that knows nothing yet gives all decisions an advantage")
    if not said:
        return ""
    drift = "the gradient of matching errors is not zero where all advantages are alike, a drift that nothing asked for"
    return f"{drift}: {'; '.join(said)}"
