"""Several policies as one: their velocities, or the noise they predict, added with weights (GPC, arXiv:2510.01068)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from flowrl.errors import UserError
from flowrl.models.control.form import ControlConfig, Share
from flowrl.models.control.load import check_weights, load_control, new_network
from flowrl.models.control.network import ComposedNetwork, ControlNetwork
from flowrl.models.control.policy import ControlPolicy

FORM = ("activation", "blocks", "norm", "encoder", "embedding", "bound")
SAME = ("kind", "observation", "action", "chunk", "past", "execute", "history", *FORM)
"""What policies must have in common; DDPMs also their number of times."""
CLOSE = 1e-6
"""Statistics of actions that differ by no more are the same."""


def compose(policies: Sequence[str | Path], weights: Sequence[float]) -> tuple[ControlConfig, ControlNetwork]:
    """One policy of some folders or worlds: ``v(x, t, s) = sum_i w_i v_i(x, t, s)``, or of the noise that DDPMs
    predict, at every step of the sampler (SageCao1125/GPC, 2 Oct 2025, envs/base_task.py, ``get_composed_action``,
    there of two). `save_control` writes it as a model like any other, with the weights of all.

    Scores add up in the same way, so that Gaussians of one variance become the Gaussian at the weighted mean.

    Raises:
        UserError: for weights that are not on the simplex, and policies that do not denoise the same chunks from the
            same noise.
    """
    if len(policies) < 2:
        raise UserError(
            f"there is nothing to compose of {', '.join(map(str, policies))} alone; name two policies or more"
        )
    opened = [load_control(each, device="cpu") for each in policies]
    if len(weights) != len(opened):
        raise UserError(f"there are {len(opened)} policies and {len(weights)} weights; give one for each")
    check_weights(weights)
    for name, each in zip(policies, opened, strict=True):
        _check(each, str(name), opened[0], str(policies[0]))
    shares = [Share(float(w), p.config.width, p.config.depth) for w, p in zip(weights, opened, strict=True)]
    config = replace(opened[0].config, policies=tuple(shares))
    network = new_network(config)
    assert isinstance(network, ComposedNetwork)
    for part, policy in zip(network.parts, opened, strict=True):
        part.load_state_dict(policy.network.state_dict())
    return config, network


def _check(policy: ControlPolicy, name: str, first: ControlPolicy, first_name: str) -> None:
    config, other = policy.config, first.config
    if config.kind == "gaussian":
        raise UserError(f"{name} is a Gaussian, which denoises nothing; compose flows or DDPMs")
    for has, there in (
        ("a residual", config.residual),
        ("a score", config.score),
        ("labels", config.conditions),
        ("several policies", config.policies),
        ("a network for the first steps", config.tuned_from is not None),
        ("networks beside it", config.beside),
    ):
        if there:
            raise UserError(f"{name} has {has}; compose single policies without one, and add that to what they make up")
    for key in (*SAME, *(["steps"] if config.kind == "ddpm" else [])):
        mine, wanted = getattr(config, key), getattr(other, key)
        if mine != wanted:
            raise UserError(
                f"{name} has {key} {mine} and {first_name} {wanted}; compose policies of the same chunks and form"
            )
    mine, wanted = (torch.cat([p.network.actions.mean, p.network.actions.std]) for p in (policy, first))
    if not torch.allclose(mine, wanted, rtol=0, atol=CLOSE):
        raise UserError(
            f"{name} and {first_name} standardise actions by other statistics, so that the noise of one is not the "
            "other's; clone them with the same (flowrl.models.control.cloning.clone, statistics=...)"
        )
