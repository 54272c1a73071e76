"""Networks beside a control policy's own (`flowrl.types.Beside`): critics of actions, actors of one evaluation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowrl.errors import UserError
from flowrl.math.random import derive
from flowrl.types import Acting, Beside

LAYER_NORM_EPS = 1e-6
"""As in flax."""


class Perceptrons(nn.Module):
    """K networks of one shape, computed together: linear layers (Xavier uniform, no bias at first), GELU (its tanh
    form) and, with ``norm``, a layer norm after it: the networks of seohongpark/fql (11 Mar 2025, utils/networks.py),
    which dqc and qam share."""

    def __init__(self, sizes: list[int], copies: int, norm: bool) -> None:
        super().__init__()
        pairs = list(pairwise(sizes))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.gains, self.shifts = nn.ParameterList(), nn.ParameterList()
        for wide, next_wide in pairs:
            one = torch.stack([nn.init.xavier_uniform_(torch.empty(wide, next_wide)) for _ in range(copies)])
            self.weights.append(nn.Parameter(one))
            self.biases.append(nn.Parameter(torch.zeros(copies, 1, next_wide)))
        for _, next_wide in pairs[:-1] if norm else []:
            self.gains.append(nn.Parameter(torch.ones(copies, 1, next_wide)))
            self.shifts.append(nn.Parameter(torch.zeros(copies, 1, next_wide)))

    def forward(self, x: Tensor, fixed: bool = False) -> Tensor:
        """[K, n, out] of [n, in]; ``fixed`` weights get no gradient."""

        def held(parameter: Tensor) -> Tensor:
            return parameter.detach() if fixed else parameter

        found = x.expand(len(self.weights[0]), *x.shape)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            found = torch.baddbmm(held(bias), found, held(weight))
            if number == len(self.weights) - 1:
                break
            found = functional.gelu(found, approximate="tanh")
            if len(self.gains):
                found = functional.layer_norm(found, found.shape[-1:], eps=LAYER_NORM_EPS)
                found = found * held(self.gains[number]) + held(self.shifts[number])
        return found


class BesideNetwork(nn.Module):
    """One of `Beside`, of ``seen`` numbers of observations and chunks [h, d]; it begins the same in every run."""

    def __init__(self, name: str, form: Beside, seen: int, chunk: int, action: int) -> None:
        super().__init__()
        self.form, self.shape = form, (chunk, action)
        if form.kind == "number":
            self.log = nn.Parameter(torch.zeros(1))
            return
        whole = chunk * action
        asked = {"actor": whole, "editor": whole, "q": form.decisions * whole, "value": 0}[form.kind]
        answer = {"actor": whole, "editor": 2 * whole}.get(form.kind, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "beside", name))
            self.body = Perceptrons([seen + asked, *[form.width] * form.depth, answer], form.copies, form.judges)

    def forward(self, features: Tensor, chunk: Tensor | None = None, fixed: bool = False) -> Tensor:
        """Chunks [n, h, d] of an actor, [n, 2, h, d] of an editor, numbers [K, n] of a critic, of features [n, seen]
        and a chunk [n, ...]; the number itself [n] of one."""
        if self.form.kind == "number":
            return self.log.exp().expand(len(features))
        given = features if chunk is None else torch.cat([features, chunk.flatten(1)], dim=1)
        found = self.body(given, fixed)
        if self.form.judges:
            return found[..., 0]
        return found[0].unflatten(1, (2, *self.shape) if self.form.kind == "editor" else self.shape)


PREFIX = "beside."
"""Of their weights among a policy's, before their names."""


def is_one_of(key: str, names: Collection[str]) -> bool:
    """Whether a weight is the policy's own, or of a network beside of one of these names."""
    return not key.startswith(PREFIX) or key.split(".")[1] in names


def begin_flows(network: Any, names: Collection[str]) -> None:
    """Let the flows beside a network that have these names begin as its own."""
    own = network.state_dict()
    for name in names:
        copied = network.beside[name]
        copied.load_state_dict({key: own[key] for key in copied.state_dict()})


def with_new(held: Mapping[str, Tensor], network: nn.Module, kept: Collection[str]) -> dict[str, Tensor]:
    """Weights of a folder for a network: of those beside it the ``kept`` ones, the others as they begin."""
    fresh = {key: value for key, value in network.state_dict().items() if not is_one_of(key, kept)}
    return {**{key: value for key, value in held.items() if is_one_of(key, kept)}, **fresh}


def read_beside(given: Mapping[str, Any], file: Path) -> tuple[dict[str, Beside], Acting | None]:
    """``beside`` and ``acting`` of a ``config.json``. Raises `UserError` for what is of no sense."""
    try:
        beside = {name: Beside(**form) for name, form in (given.get("beside") or {}).items()}
        acting = Acting(**given["acting"]) if given.get("acting") else None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: 'beside' or 'acting' is of no sense: {error}") from error
    lost = next((name for name in (acting.needs if acting else ()) if name not in beside), None)
    if lost is not None:
        raise UserError(f"{file}: 'acting' asks a network {lost!r}, which 'beside' does not describe")
    return beside, acting
