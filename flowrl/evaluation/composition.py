"""With which weights several policies act best together: a search on a grid, by success (GPC, arXiv:2510.01068).

``python -m flowrl.evaluation.composition POLICY POLICY --out FOLDER`` searches and writes the best as one model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.models.control.composed import compose
from flowrl.models.control.load import save_control
from flowrl.models.control.network import ComposedNetwork
from flowrl.models.control.policy import ControlPolicy
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.types import Draw

BATCH = 512
"""Episodes at a time."""


def simplex(count: int, parts: int) -> Iterator[tuple[float, ...]]:
    """Every ``count`` weights that are multiples of ``1 / parts`` and sum to 1."""

    def whole(places: int, left: int) -> Iterator[tuple[int, ...]]:
        for mine in range(left + 1) if places > 1 else (left,):
            yield from ((mine, *others) for others in (whole(places - 1, left - mine) if places > 1 else ((),)))

    return (tuple(each / parts for each in found) for found in whole(count, parts))


def search(
    policies: Sequence[str | Path],
    *,
    environment: str = "avoid",
    prompts: str = "avoid:train",
    parts: int = 10,
    episodes: int = 252,
    decisions: int = 40,
    steps: int | None = None,
    seed: int = 0,
) -> dict[tuple[float, ...], float]:
    """Success by weights, at every point of the simplex in steps of ``1 / parts`` (the release's: .1), over the same
    seeds: of ``episodes`` of the prompts in turn. ``steps`` of the sampler, by default those the policies act with.

    Raises:
        UserError: for policies that do not go together, counts below 1, and an environment that does not tell success.
    """
    for name, count in (("parts", parts), ("episodes", episodes), ("decisions", decisions)):
        if count < 1:
            raise UserError(f"{name}={count} searches nothing; give 1 or more")
    config, network = compose(policies, [1.0, *[0.0] * (len(policies) - 1)])
    assert isinstance(network, ComposedNetwork)
    policy = ControlPolicy(config, network.eval(), None, None, torch.device("cpu"))
    sampler = EpisodeSampler(
        sampler=FlowSampler(steps=steps or config.steps, guidance=1.0), environment=environment, decisions=decisions
    )
    known = load_prompts(prompts).prompts
    own = seeds(seed, "composition", count=episodes)
    found = {}
    for weights in simplex(len(policies), parts):
        network.weights = weights
        success = []
        for first in range(0, episodes, BATCH):
            rows = range(first, min(first + BATCH, episodes))
            asked = [known[row % len(known)] for row in rows]
            draw = Draw.of(own[rows.start : rows.stop], torch.arange(len(rows)), 0, seed, asked)
            success.append(sampler(policy, policy.condition(asked), draw).final[:, 3])
        found[weights] = float(torch.cat(success).mean())
    if any(value != value for value in found.values()):
        raise UserError(f"environment {environment} does not tell success, by which weights are searched")
    return found


def best_of(found: dict[tuple[float, ...], float]) -> tuple[float, ...]:
    """The weights of most success; of several the most even ones."""
    return max(found, key=lambda weights: (found[weights], -max(weights)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print success by weights, and write the best or the given ones as a model."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("policies", nargs="+", help="folders of models, or worlds")
    options.add_argument("--out", type=Path, required=True, help="new folder of the composed model")
    options.add_argument("--weights", type=float, nargs="+", help="no search: one for each policy, that sum to 1")
    options.add_argument("--environment", default="avoid")
    options.add_argument("--prompts", default="avoid:train", help="that are searched on; evaluate on others")
    options.add_argument("--parts", type=int, default=10, help="steps of the grid from 0 to 1")
    options.add_argument("--episodes", type=int, default=252, help="at each point")
    options.add_argument("--decisions", type=int, default=40)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args(arguments)
    if given.out.exists():
        raise UserError(f"--out: {given.out} exists; name a new folder")
    weights = given.weights
    if weights is None:
        named = ("environment", "prompts", "parts", "episodes", "decisions", "seed")
        found = search(given.policies, **{name: getattr(given, name) for name in named})
        for each, success in found.items():
            print(" ".join(f"{weight:.2f}" for weight in each), f" success {success:.3f}")
        weights = best_of(found)
    save_control(*compose(given.policies, weights), given.out)
    print(f"{given.out}: weights {', '.join(f'{weight:g}' for weight in weights)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
