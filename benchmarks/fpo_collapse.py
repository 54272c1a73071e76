"""What happens inside a run of FPO on images before and while it collapses.

    python -m benchmarks.fpo_collapse ARM [--seed 0] [--iterations 24] [--every 6] [--out FILE]

An arm of `benchmarks/evidence/fpo_collapse.yaml` is trained in this process, and every iteration is measured again with
the weights from before and after its updates, at the (time, noise) draws that it learned from and at fresh ones.

reward, rms, spread, mean: mean reward; root mean square of the latents, of their deviations from the mean of a
    prompt's group, and of those means.
toward: correlation of advantage and the latents' rms within groups: whether the reward asks for larger latents.
draw, sample, outside: standard deviation of the log-ratio of a draw and of the mean of a sample's draws; share of the
    samples whose ratio lies outside of the clip after the iteration.
good, bad, fresh good, fresh bad: mean log-ratio of samples with A > 0 and with A < 0, at their own draws and at fresh
    ones.
first good, first bad: matching error, weighted as in the run, of the first iteration's samples with A > 0 and A < 0 at
    fixed draws: what has become of the base's own good and bad samples.
moved, length: mean (v - v_base)^2 at the same points, and |v| / |v_base|.

Every ``--every`` iterations also, for every time of the sampler's grid, the norm of the mean gradient of A log p over
its standard error (groups are the blocks), the same for A = 1, and the cosine between the parts of A > 0 and A < 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.evidence.runs import Page
from benchmarks.fpo_drift import norm_and_error
from flowrl.config import Config
from flowrl.estimators.matching import Matching, MatchingRows
from flowrl.estimators.times import NOISE_TIME, GridTimes
from flowrl.math.flow import interpolate
from flowrl.math.random import each
from flowrl.rounds import ScoredRollout
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate

PAGE = "fpo_collapse"


@contextmanager
def weights_of(parameters: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """The parameters with other values for a while."""
    present = [p.detach().clone() for p in parameters]
    _put(parameters, values)
    try:
        yield
    finally:
        _put(parameters, present)


@torch.no_grad()
def _put(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


@torch.no_grad()
def log_p(session: Session, estimator: Any, made: ScoredRollout, seeds: Tensor) -> Tensor:
    """[N, M] what the estimator says of an iteration's samples at the draws of these seeds."""
    rows = estimator.probe(made.rollout, session.policy, seeds)
    return estimator(session.policy, rows, made.rollout.condition).logp.double()


class First:
    """The samples of the first iteration at fixed draws, and what the base says there."""

    def __init__(self, session: Session, estimator: Any, made: ScoredRollout, advantage: Tensor) -> None:
        self._session, self._estimator, self._made, self._advantage = session, estimator, made, advantage
        self._seeds = each(made.rollout.seeds, "first")
        rows = estimator.probe(made.rollout, session.policy, self._seeds)
        self._points = self._flat(rows)
        self._base = self._velocity()

    def _flat(self, rows: MatchingRows) -> tuple[Tensor, Tensor, Any]:
        n, m = rows.t.shape
        t = rows.t.reshape(-1)
        x = interpolate(rows.clean.flatten(0, 1), rows.noise.flatten(0, 1), t)
        return x, t, self._made.rollout.condition.take(torch.arange(n).repeat_interleave(m))

    @torch.no_grad()
    def _velocity(self) -> Tensor:
        x, t, condition = self._points
        policy: Any = self._session.policy
        return policy.velocity(x, t, condition, guidance=1.0).double().flatten(1)

    def measure(self) -> dict[str, float]:
        v = self._velocity()
        error = -log_p(self._session, self._estimator, self._made, self._seeds).mean(dim=1)
        return {
            "first good": float(error[self._advantage > 0].mean()),
            "first bad": float(error[self._advantage < 0].mean()),
            "moved": float((v - self._base).square().mean()),
            "length": float((v.norm(dim=1) / self._base.norm(dim=1)).mean()),
        }


def of_samples(made: ScoredRollout, advantage: Tensor) -> dict[str, float]:
    """What the latents of an iteration are like."""
    latents, group = made.rollout.final.double().flatten(1), made.rollout.group
    ids = group.unique(return_inverse=True)[1]
    mean = torch.stack([latents[ids == k].mean(dim=0) for k in range(int(ids.max()) + 1)])
    size = latents.square().mean(dim=1).sqrt()
    centred = size - torch.stack([size[ids == k].mean() for k in range(len(mean))])[ids]
    varied = advantage != 0
    pair = torch.stack([centred[varied], advantage[varied].double()])
    return {
        "rms": float(latents.square().mean().sqrt()),
        "spread": float((latents - mean[ids]).square().mean().sqrt()),
        "mean": float(mean.square().mean().sqrt()),
        "toward": float(torch.corrcoef(pair)[0, 1]),
    }


def of_ratios(own: Tensor, fresh: Tensor, advantage: Tensor, clip: float) -> dict[str, float]:
    """What log-ratios [N, M] at the run's own and at fresh draws say."""
    good, bad = advantage > 0, advantage < 0
    sample = own.mean(dim=1)
    ratio = sample.exp()
    return {
        "draw": float(own.std()),
        "sample": float(sample.std()),
        "outside": float(((ratio - 1).abs() > clip).double().mean()),
        "good": float(own[good].mean()),
        "bad": float(own[bad].mean()),
        "fresh good": float(fresh[good].mean()),
        "fresh bad": float(fresh[bad].mean()),
    }


def gradients(session: Session, made: ScoredRollout, advantage: Tensor, weight: Any) -> dict[str, Any]:
    """Of A log p and of log p, for every time of the grid, ``[norm, standard error]`` of the mean, with the groups as
    blocks; the cosine between the mean gradients of A > 0 and of A < 0 over all times, and their norms."""
    policy: Any = session.policy
    rollout = made.rollout
    assert rollout.times is not None
    times = GridTimes(fraction=1.0, least=NOISE_TIME)
    usable = times.usable(rollout.times.cpu()).sort().values
    estimator = Matching(draws=len(usable), times=times, weight=weight)
    rows = estimator.probe(rollout, policy, each(rollout.seeds, "gradient"))
    parameters, order = policy.parameters(), rows.t.argsort(dim=1)
    found: list[list[Tensor]] = []  # of a time and a block, [3, P]: A > 0, A < 0, A = 1
    for k in range(len(usable)):
        found.append([])
        for key in rollout.group.unique():
            index = (rollout.group == key).nonzero()[:, 0]
            one = order[index, k][:, None]
            number, t = rows.number[index].gather(1, one), rows.t[index].gather(1, one)
            block = replace(rows, clean=rows.clean[index, :1], seeds=rows.seeds[index, :1], number=number, t=t)
            logp = estimator(policy, block, rollout.condition.take(index)).logp[:, 0]
            a = advantage[index].to(logp)
            losses = [(weights * logp).mean() for weights in (a.clamp(min=0), a.clamp(max=0), torch.ones_like(a))]
            found[k].append(torch.stack([_flat_gradient(loss, parameters) for loss in losses]).double())
    every = torch.stack([torch.stack(blocks) for blocks in found])  # [T, B, 3, P]
    good, bad, one = (every[:, :, i] for i in range(3))
    both = good + bad
    return {
        "times": [round(float(t), 3) for t in usable],
        "A": [norm_and_error(of_time) for of_time in both],
        "one": [norm_and_error(of_time) for of_time in one],
        "A all": norm_and_error(both.mean(dim=0)),
        "one all": norm_and_error(one.mean(dim=0)),
        "cosine": float(torch.cosine_similarity(good.mean(dim=(0, 1)), bad.mean(dim=(0, 1)), dim=0)),
        "sizes": [float(good.mean(dim=(0, 1)).norm()), float(bad.mean(dim=(0, 1)).norm())],
    }


def _flat_gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def run(overrides: list[str], config: str, every: int, out: Path | None) -> None:
    """Train and measure; a line of JSON for each iteration."""
    session, timer = open_session(check_run(Config.load(config, overrides))), PhaseTimer()
    estimator: Any = session.algorithm.estimator
    clip = (session.algorithm.objective.clip_range or (0.05, 0.05))[0]
    parameters, first = session.policy.parameters(), None
    for iteration in range(session.config.train.iterations):
        before = [p.detach().clone() for p in parameters]
        metrics, made, advantage = iterate(session, timer)
        advantage = advantage.double()
        line: dict[str, Any] = {
            "iteration": iteration,
            "reward": metrics["reward/mean"],
            "strict": metrics["reward/strict/mean"],
        }
        line |= of_samples(made, advantage)
        draws = {"own": made.rollout.seeds, "fresh": each(made.rollout.seeds, "fresh")}
        with weights_of(parameters, before):
            first = first or First(session, estimator, made, advantage)
            old = {name: log_p(session, estimator, made, seeds) for name, seeds in draws.items()}
            if every and iteration % every == 0:
                line["gradient"] = gradients(session, made, advantage, estimator.weight)
        moved = {name: log_p(session, estimator, made, seeds) - old[name] for name, seeds in draws.items()}
        line |= of_ratios(moved["own"], moved["fresh"], advantage, clip) | first.measure()
        line |= {"clipped": metrics["clip_fraction"], "norm": metrics["grad_norm"]}
        print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    session.rewards.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    page = Page.load(PAGE)
    parser.add_argument("arm", choices=list(page.arms))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=page.iterations)
    parser.add_argument("--every", type=int, default=6, help="iterations between gradients; 0: none")
    parser.add_argument("--out", type=Path, help="a file of JSON lines as well")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    overrides = [
        *page.shared,
        *page.arms[asked.arm],
        f"train.seed={asked.seed}",
        f"train.iterations={asked.iterations}",
    ]
    run(overrides, page.config, asked.every, asked.out)


if __name__ == "__main__":
    main()
