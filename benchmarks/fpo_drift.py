"""What FPO does to a policy where all advantages are alike: the gradient of its surrogate for A = 1, at the policy that
sampled, which is zero in expectation for a density and not for matching errors of a coarse sampler.

    python -m benchmarks.fpo_drift [--model avoid|shapes] [--steps 5 10 50] [--samples 1200]

For every number of sampling steps: the norm of the mean gradient over all decisions beside its standard error, which
is about what the norm would be if the mean were zero; of FPO with the errors of the noise (its default) and of the
velocity, and of DPPO, whose chain is a density. ``--model shapes``: the same of images, each of which is one decision.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from flowrl.config import Config
from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import NOISE_TIME, GridTimes
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import DDIM, Floored
from flowrl.math.random import seeds
from flowrl.models.control.load import load_control
from flowrl.models.control.policy import ControlPolicy
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.startup.policies import open_policy
from flowrl.types import Draw, Estimator, Prompt
from flowrl.worlds import shapes
from flowrl.worlds.avoid.prompts import prompts as avoid

BLOCKS = 40
"""Independent parts of the samples, from which the standard error is taken."""


def mean_gradients(policy: Any, sampler: FlowSampler, estimator: Estimator, samples: int) -> tuple[Tensor, int]:
    """[BLOCKS, P]: the gradient of the mean log-probability of a decision in each block of samples, episodes of a
    policy that acts or images; how many decisions there were."""
    acts = isinstance(policy, ControlPolicy)
    columns = avoid("train") if acts else shapes.prompts("train")
    asked = [Prompt(str(row.get("prompt", "p")), i, row) for i, row in enumerate(columns)]
    making: Any = EpisodeSampler(sampler=sampler) if acts else sampler
    part: Any = PerDecision(estimator=estimator) if acts else estimator
    count, found, decisions = samples // BLOCKS, [], 0
    for block in range(BLOCKS):
        rows = [asked[(i if acts else block * count + i) % len(asked)] for i in range(count)]
        draw = Draw.of(seeds(0, "drift", block, count=count), torch.arange(count), 0, 0, rows)
        rollout = making(policy, policy.condition(rows), draw)
        probe = part.probe(rollout, policy, draw.seeds)
        logp = part(policy, probe, rollout.condition).logp
        logp = logp[probe.alive] if acts else logp
        decisions += int((probe.slot >= 0).sum()) if acts else count
        parameters = list(policy.adaptation.parameters.values())
        gradient = torch.autograd.grad(logp.mean(), parameters, allow_unused=True)
        pairs = zip(gradient, parameters, strict=True)
        found.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]).double())
    return torch.stack(found), decisions


def load(model: str) -> Any:
    """A control model, or the base of the shapes world."""
    if model != "shapes":
        return load_control(model)
    return open_policy(Config.load("benchmarks/shapes.yaml", ["algorithm={use: fpo}"]))


def norm_and_error(gradients: Tensor) -> tuple[float, float]:
    """The norm of the mean of [B, P], and its standard error ``sqrt(sum var / B)``."""
    return float(gradients.mean(dim=0).norm()), float((gradients.var(dim=0).sum() / len(gradients)).sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="avoid")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 50])
    parser.add_argument("--samples", type=int, default=1200, help="episodes or images")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    policy = load(asked.model)
    times = GridTimes(fraction=1.0, stratified=True, least=NOISE_TIME)
    print("| sampling steps | FPO, error of the noise | FPO, error of the velocity | DPPO | decisions |")
    print("|---|---|---|---|---|")
    for steps in asked.steps:
        plain = FlowSampler(steps=steps, guidance=1.0)
        noisy = FlowSampler(steps=steps, dynamics=Floored(DDIM(1.0), 0.1), window=EveryStep(drop=0), guidance=1.0)
        cells, decisions = [], 0
        for sampler, estimator in (
            (plain, Matching(draws=8, times=times, weight="noise")),
            (plain, Matching(draws=8, times=times, weight="uniform")),
            (noisy, Transitions(reduction="sum")),
        ):
            gradients, decisions = mean_gradients(policy, sampler, estimator, asked.samples)
            norm, error = norm_and_error(gradients)
            cells.append(f"{norm:.4f} / {error:.4f}")
        print(f"| {steps} | {' | '.join(cells)} | {decisions} |", flush=True)


if __name__ == "__main__":
    main()
