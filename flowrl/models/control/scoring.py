"""The score of demonstrations, by which a policy's actions move towards what was demonstrated (CDSA,
arXiv:2406.07541).

``python -m flowrl.models.control.scoring MODEL --out FOLDER`` gives a model the score of a world's demonstrations.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.control.form import Ascent, ControlConfig
from flowrl.models.control.load import load_control, new_network, save_control
from flowrl.models.control.network import ControlNetwork
from flowrl.models.control.policy import ControlPolicy

NOISE = 0.3
"""Deviation of the noise on standardised observations and actions; of a density that is smoothed by it the score is
learned."""


def fit(
    policy: ControlPolicy,
    observed: Tensor,
    action: Tensor,
    ascent: Ascent,
    *,
    noise: float = NOISE,
    steps: int = 3000,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
) -> tuple[ControlConfig, ControlNetwork]:
    """The policy with a score of pairs of observations [T, o] and single actions [T, d], by denoising score matching:
    ``mean (c s(x + c z) + z_a)^2`` of ``x`` = (observation, action), standardised, c = ``noise`` and z normal, of
    which the action's part z_a is asked for; Adam, cosine schedule. Where actions are N(m, v) at an observation it is
    ``-(a - m) / (v + c^2)``; where all demonstrations did the same, v is 0, and steps of ``2 c^2`` or more run away.

    The rule ``a <- a + rate s`` and "a denoising score network of states and actions" are the paper's abstract and a
    summary of others: neither its text nor its code was there. Left out is its second part, which moves the state by
    the score's other half through a model of inverse dynamics, whose formula is not known here. Raises `UserError` for
    steps that run away, and data of another size than the policy's.
    """
    if not ascent.rate < 2 * noise**2:
        raise UserError(
            f"rate={ascent.rate:g} moves actions past where all demonstrations did the same; give less than 2 noise^2, "
            f"{2 * noise**2:.3g}, or more noise"
        )
    for what, data, size in (
        ("observations", observed, policy.config.observation),
        ("actions", action, policy.config.action),
    ):
        if data.shape[1] != size:
            raise UserError(
                f"the data's {what} have {data.shape[1]} numbers, and the model's {size}; take its own data"
            )
    torch.manual_seed(seed)
    config = replace(policy.config, score=ascent)
    network = new_network(config)
    network.load_state_dict(policy.network.state_dict(), strict=False)
    assert network.score is not None
    with torch.no_grad():
        seen, done = network.observations(observed), network.actions(action)
    optimizer = torch.optim.Adam(network.score.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(seen), (batch,))
        z = torch.randn(batch, seen.shape[1]), torch.randn(batch, done.shape[1])
        answer = network.score(seen[rows] + noise * z[0], done[rows] + noise * z[1])
        loss = (noise * answer + z[1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return config, network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Give a model the score of a world's demonstrations."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", help="folder, or a world")
    options.add_argument("--out", type=Path, required=True, help="new folder")
    options.add_argument("--world", default="avoid", help="whose demonstrations are taken")
    options.add_argument("--rate", type=float, default=Ascent.rate)
    options.add_argument("--steps", type=int, default=Ascent.steps)
    options.add_argument("--noise", type=float, default=NOISE)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args(arguments)
    if given.out.exists():
        raise UserError(f"--out: {given.out} exists; name a new folder")
    try:
        world: Any = importlib.import_module(f"flowrl.worlds.{given.world}.demonstrations")
    except ModuleNotFoundError as error:
        raise UserError(
            f"--world: {given.world} has no demonstrations; take avoid, or fit arrays of your own"
        ) from error
    observed, action, _ = map(torch.from_numpy, world.demonstrations())
    policy = load_control(given.model, device="cpu")
    ascent = Ascent(given.rate, given.steps)
    config, network = fit(policy, observed, action, ascent, noise=given.noise, seed=given.seed)
    save_control(config, network, given.out, policy.base)
    print(f"{given.out}: {given.steps} steps of rate {given.rate:g} to what was demonstrated")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
