"""Optimisers of weights that the network holds in bfloat16, where a step is often smaller than the distance to the next
number: float32 masters that collect such steps, or stochastic rounding, which takes them with the right probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.math.random import derive

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Builds an optimiser for groups of float32 parameters."""
MASTER = "master"


class MasterWeights(torch.optim.Optimizer):
    """An optimiser on float32 copies; after every step the parameters are the copies, rounded to nearest.

    The copies are part of its state. ``seed`` is not used: nothing is drawn.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], make: Make, *, lr: float, seed: int) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr})
        self._masters = [[nn.Parameter(p.detach().float()) for p in group["params"]] for group in self.param_groups]
        self._inner = make([{"params": group} for group in self._masters])
        self.defaults = dict(self._inner.defaults)  # what its groups are compared with

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the masters with the parameters' gradients and round them into the parameters."""
        for group, masters, inner in zip(self.param_groups, self._masters, self._inner.param_groups, strict=True):
            inner["lr"] = group["lr"]
            for parameter, master in zip(group["params"], masters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
        self._inner.step()
        for group, masters in zip(self.param_groups, self._masters, strict=True):
            for parameter, master in zip(group["params"], masters, strict=True):
                parameter.copy_(master)
                master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's, with the master of every parameter."""
        packed = self._inner.state_dict()
        masters = [master.detach() for group in self._masters for master in group]
        packed["state"] = {i: {**packed["state"].get(i, {}), MASTER: master} for i, master in enumerate(masters)}
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        state = {int(index): dict(entry) for index, entry in state_dict["state"].items()}
        masters = [master for group in self._masters for master in group]
        for index, master in enumerate(masters):
            master.copy_(state[index].pop(MASTER))
        self._inner.load_state_dict({**state_dict, "state": {i: entry for i, entry in state.items() if entry}})


class StochasticRounding(torch.optim.Optimizer):
    """One optimiser for each parameter, which sees it in float32 for the time of its step alone; the result is rounded
    up or down at random, so that it is right on average (`round_stochastically`).

    The random numbers of a step follow from the seed, the parameter's place and the number of steps taken.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], make: Make, *, lr: float, seed: int) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr, "taken": 0})
        self._seed, self._make = seed, make
        self._inner: dict[int, torch.optim.Optimizer] = {}
        kept, kind = _kept_by_groups(make)
        if kept:
            raise UserError(
                f"optimizer.masters=false steps every parameter by itself, and {kind} measures all of them together"
                f" ({kept[0]}); set optimizer.masters=true"
            )
        for index, (parameter, _) in enumerate(self._parameters()):  # a shape that it does not take is told at once
            with self._whole(index, parameter):
                pass

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        taken = self.param_groups[0]["taken"] = self.param_groups[0]["taken"] + 1
        for index, (parameter, rate) in enumerate(self._parameters()):
            if parameter.grad is None:
                continue
            with self._whole(index, parameter) as (inner, proxy):
                inner.param_groups[0]["lr"], proxy.grad = rate, parameter.grad.float()
                inner.step()
                found = proxy.data
                if parameter.dtype == torch.bfloat16:
                    found = round_stochastically(found, derive(self._seed, "rounding", taken, index))
                parameter.copy_(found)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimisers' states, by the parameters' places."""
        found = {index: inner.state_dict()["state"].get(0) for index, inner in sorted(self._inner.items())}
        return {**super().state_dict(), "state": {index: entry for index, entry in found.items() if entry}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for parameter, _ in self._parameters()]
        for index, entry in state_dict["state"].items():
            with self._whole(int(index), parameters[int(index)]) as (inner, _):
                inner.load_state_dict({**inner.state_dict(), "state": {0: entry}})

    def _parameters(self) -> list[tuple[nn.Parameter, float]]:
        """All of them with their rates, in order."""
        return [(parameter, group["lr"]) for group in self.param_groups for parameter in group["params"]]

    @contextmanager
    def _whole(self, index: int, parameter: nn.Parameter) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
        """A parameter's optimiser and what it optimises, which holds the parameter in float32 meanwhile."""
        whole = parameter.detach().float()
        if index not in self._inner:  # some make their state at once
            self._inner[index] = self._make([{"params": [nn.Parameter(whole)]}])
        inner = self._inner[index]
        proxy = inner.param_groups[0]["params"][0]
        proxy.data = whole
        try:
            yield inner, proxy
        finally:
            proxy.grad, proxy.data = None, whole.new_empty(0)


def _kept_by_groups(make: Make) -> tuple[list[str], str]:
    """What an optimiser changes in its groups when it steps, and its class."""
    trial = nn.Parameter(torch.ones(2, 2))
    optimizer = make([{"params": [trial]}])
    before = dict(optimizer.param_groups[0])
    trial.grad = torch.ones(2, 2)
    optimizer.step()
    kept = [key for key, value in optimizer.param_groups[0].items() if before.get(key) is not value]
    return kept, type(optimizer).__name__


def round_stochastically(values: Tensor, seed: int) -> Tensor:
    """float32 to bfloat16, to one of the two nearest numbers with probabilities whose mean is the value.

    A bfloat16 is the upper half of a float32; a uniform number of 16 bits is added to the lower half, which is then cut
    off, so that the upper half grows by one with probability (lower half) / 2^16.
    """
    generator = torch.Generator(values.device).manual_seed(seed)
    bits = torch.randint(0, 1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    return add_and_cut(values, bits)


def add_and_cut(values: Tensor, bits: Tensor) -> Tensor:
    """float32 to bfloat16: ``bits`` (int32, 0 to 65535) are added to each number's lower half, which is cut off."""
    moved = (values.detach().contiguous().view(torch.int32) + bits) & -65536
    return moved.view(torch.float32).to(torch.bfloat16)
