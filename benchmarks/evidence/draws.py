"""How noisy the ways to draw views of a completion are, at equal forwards, on the masked base of the sudoku world.

``python -m benchmarks.evidence.draws [--seeds 0 1 2 3 4]`` measures and writes ``docs/evidence/draws.md``. A seed is a
run of its own: three iterations of VRPO, so that policy and reference differ, then 96 fresh completions of the policy.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.page import put, written_range
from benchmarks.evidence.runs import PACKAGES, read, write
from flowrl.config import Config
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Coupled, Quadrature, RandomCount, RandomTime, ViewDraw
from flowrl.math.random import seeds as seeds_of
from flowrl.models.weights import REFERENCE
from flowrl.records.machine import commit, installed, processor
from flowrl.rounds import ScoredRollout, sample_and_score
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate

NAME, SEEDS = "draws", 5
OVERRIDES = ["algorithm.use=vrpo", "data.prompts=8"]
WARM_UP = 3
ESTIMATES, GRADIENTS = 60, 20
"""Repetitions of each measurement, with other views."""
PLANS: dict[str, tuple[str, ViewDraw]] = {
    "time": ("independent times, weight 1/t", RandomTime(draws=2)),
    "count": ("independent counts", RandomCount(draws=2, systematic=False)),
    "stratified": ("stratified counts (our default)", RandomCount(draws=2)),
    "quadrature": ("quadrature, two nodes (GDPO's paper)", Quadrature(nodes=2)),
    "floor": ("quadrature, two nodes, number hidden rounded down (GDPO's code)", Quadrature(nodes=2, counts="floor")),
    "complement": ("a mask and its complement (coupled-GRPO)", Coupled(full=False)),
}
COLUMNS = {
    "bias": "bias of the bound, nats",
    "deviation": "standard deviation of the bound, nats",
    "own": "of the difference to the reference, own views",
    "shared": "of the same, shared views",
    "gradient": "noise of the gradient over its length, squared",
    "cosine": "cosine of one gradient and the true one",
}


def measure(seed: int) -> dict[str, dict[str, float]]:
    """All columns for every plan, of one run."""
    config = Config.load("benchmarks/sudoku.yaml", [*OVERRIDES, f"train.seed={seed}"])
    session, timer = open_session(check_run(config)), PhaseTimer()
    for _ in range(WARM_UP):
        iterate(session, timer)
    made = sample_and_score(session, timer)
    exact = _estimates(session, made, RandomCount(draws=16), 0, ESTIMATES).mean(0)
    true = torch.stack([_gradient(session, made, RandomCount(draws=16), 10**6 + i) for i in range(GRADIENTS)]).mean(0)
    found = {}
    for name, (_, plan) in PLANS.items():
        bound = _estimates(session, made, plan, 1, ESTIMATES)
        with session.policy.using(REFERENCE):
            shared = _estimates(session, made, plan, 1, ESTIMATES)
            own = _estimates(session, made, plan, 10**5, ESTIMATES)
        gradients = torch.stack([_gradient(session, made, plan, i) for i in range(GRADIENTS)])
        noise = (gradients - gradients.mean(0)).square().sum(1).sum() / (GRADIENTS - 1)
        found[name] = {
            "bias": float((bound.mean(0) - exact).mean()),
            "deviation": _deviation(bound),
            "own": _deviation(bound - own),
            "shared": _deviation(bound - shared),
            "gradient": float(noise / true.square().sum()),
            "cosine": float(torch.cosine_similarity(gradients, true[None], dim=1).mean()),
        }
    session.rewards.close()
    return found


def _deviation(estimates: Tensor) -> float:
    """Standard deviation over the repetitions, root mean square over the completions."""
    return float(estimates.var(0).mean().sqrt())


def _estimates(session: Session, made: ScoredRollout, plan: ViewDraw, first: int, count: int) -> Tensor:
    """[count, n] estimates of the bound of every completion."""
    with torch.no_grad():
        return torch.stack([_bound(session, made, plan, first + number) for number in range(count)])


def _bound(session: Session, made: ScoredRollout, plan: ViewDraw, number: int) -> Tensor:
    estimator, rollout = MaskedViews(views=plan, entropy=False), made.rollout
    rows = estimator.probe(rollout, session.policy, seeds_of(number, "evidence", count=len(rollout.seeds)))
    return estimator(session.policy, rows, rollout.condition).logp.mean(dim=1)


def _gradient(session: Session, made: ScoredRollout, plan: ViewDraw, number: int) -> Tensor:
    """Of ``mean_i A_i bound_i``, flat, with the advantage of the group normalised."""
    reward = made.scores.total.view(-1, session.config.data.group)
    advantage = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)).flatten()
    weights = [p for group in session.optimizer.param_groups for p in group["params"]]
    loss = (advantage * _bound(session, made, plan, number)).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, allow_unused=False)])


def block(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table, in Markdown: mean over the seeds and range."""
    rows = [f"| views | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, (words, _) in PLANS.items():
        cells = [written_range([of_seed[name][key] for of_seed in found.values()], 3) for key in COLUMNS]
        rows.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(rows)


def paired(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """What a plan's variances are of those of independent times, seed by seed, in Markdown."""
    columns = {"deviation": 2, "shared": 2, "gradient": 1}
    rows = ["| views | variance of the bound | of the difference, shared views | of the gradient |", "|---" * 4 + "|"]
    for name, (words, _) in PLANS.items():
        shares = [
            [(seed[name][key] / seed["time"][key]) ** power for seed in found.values()]
            for key, power in columns.items()
        ]
        rows.append(f"| {words} | {' | '.join(written_range(share, 2) for share in shares)} |")
    return "\n".join(rows)


def runs_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured of each seed."""
    return [data["seeds"]]


def write_page() -> None:
    """Bring the page up to its data."""
    data = read(NAME)
    found, versions = data["seeds"], ", ".join(f"{name} {data[name]}" for name in PACKAGES)
    gains = [statistics.fmean((seed[p]["own"] / seed[p]["shared"]) ** 2 for p in PLANS) for seed in found.values()]
    parts = [
        "`python -m benchmarks.evidence.draws`",
        f"Seeds {', '.join(found)}; {data['processor']}, one thread; {versions}; flowrl at {data['commit']}."
        " Mean and range over the seeds, two forwards a completion.",
        block(found),
        "As a share of that of independent times, paired by seed:",
        paired(found),
        f"Sharing the views divides the variance of the difference by {written_range(gains, 1)}.",
    ]
    put(NAME, "Draws: antithetic views and quadrature", "\n\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    torch.set_num_threads(1)
    found = {str(seed): measure(seed) for seed in parser.parse_args().seeds}
    facts = {"commit": str(commit())[:7], "processor": processor(), **{name: installed(name) for name in PACKAGES}}
    write(NAME, {"seeds": found, **facts})
    write_page()


if __name__ == "__main__":
    main()
