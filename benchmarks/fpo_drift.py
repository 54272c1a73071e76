"""What FPO does to a policy where all advantages are alike: the gradient of its surrogate for A = 1, at the policy that
sampled, which is zero in expectation for a density and not for matching errors of a coarse sampler.

    python -m benchmarks.fpo_drift [--model avoid] [--steps 5 10 50] [--episodes 1200]

For every number of sampling steps: the norm of the mean gradient over all decisions beside its standard error, which
is about what the norm would be if the mean were zero; of FPO with the errors of the noise (its default) and of the
velocity, and of DPPO, whose chain is a density.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import NOISE_TIME, GridTimes
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import DDIM, Floored
from flowrl.math.random import seeds
from flowrl.models.control.load import load_control
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.types import Draw, Estimator, Prompt
from flowrl.worlds.avoid.prompts import prompts

BLOCKS = 40
"""Independent parts of the episodes, from which the standard error is taken."""


def mean_gradients(policy: Any, sampler: FlowSampler, estimator: Estimator, episodes: int) -> tuple[Tensor, int]:
    """[BLOCKS, P]: the gradient of the mean log-probability of a decision in each block; how many decisions there
    were."""
    asked = [Prompt("p", i, row) for i, row in enumerate(prompts("train"))]
    acting, part = EpisodeSampler(sampler=sampler), PerDecision(estimator=estimator)
    count, found, decisions = episodes // BLOCKS, [], 0
    for block in range(BLOCKS):
        rows = [asked[i % len(asked)] for i in range(count)]
        draw = Draw.of(seeds(0, "drift", block, count=count), torch.arange(count), 0, 0, rows)
        rollout = acting(policy, policy.condition(rows), draw)
        probe = part.probe(rollout, policy, draw.seeds)
        logp = part(policy, probe, rollout.condition).logp[probe.alive]
        decisions += int((probe.slot >= 0).sum())
        gradient = torch.autograd.grad(logp.mean(), policy.adaptation.parameters.values(), allow_unused=True)
        pairs = zip(gradient, policy.adaptation.parameters.values(), strict=True)
        found.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]).double())
    return torch.stack(found), decisions


def norm_and_error(gradients: Tensor) -> tuple[float, float]:
    """The norm of the mean of [B, P], and its standard error ``sqrt(sum var / B)``."""
    return float(gradients.mean(dim=0).norm()), float((gradients.var(dim=0).sum() / len(gradients)).sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="avoid")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 50])
    parser.add_argument("--episodes", type=int, default=1200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_control(asked.model)
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
            gradients, decisions = mean_gradients(policy, sampler, estimator, asked.episodes)
            norm, error = norm_and_error(gradients)
            cells.append(f"{norm:.4f} / {error:.4f}")
        print(f"| {steps} | {' | '.join(cells)} | {decisions} |", flush=True)


if __name__ == "__main__":
    main()
